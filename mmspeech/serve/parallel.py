"""One conversation, or a batch of them, with a model that DeepSpeed has split over N processes.

Rank 0 owns the conversation: sound, codec, vision tower, sampling, text, files. The other ranks hold their share of the
weights and of the streaming states (their heads; what is seen too), and repeat what rank 0 does to its generator, call
by call: `look` (tower features of new pictures), `open`, `see`, `show`, `forget`, `reset`, `step` (the callers' codes),
`stop`. Within a step all ranks
compute together, and every id that is drawn is rank 0's.

    with split_model("CHECKPOINT", num_ranks=2, device="cuda") as bundle:
        session = Session(bundle)

An engine of its own kind takes part in the same way: a subclass that tells the others what it is about to do.
"""

import contextlib
import dataclasses
import itertools
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmspeech.checkpoint import CONFIG, Bundle, load_model, load_speech_model, resolve
from mmspeech.config import ConfigError, GenerationConfig, ModelConfig, parse_config, read_mapping
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.model import DuplexLM, VisionSpeechModel
from mmspeech.nn.cuda_graph import Record
from mmspeech.serve.engine import settle_threads
from mmspeech.serve.ranks import LOAD_TIMEOUT_SEC, Ranks
from mmspeech.serve.sharding import check_deepspeed, check_divisible, shard
from mmspeech.types import FrameOut, VisualContext


class Lead:
    """Rank 0's word to the other ranks. Things they have to remember get a key; it is dropped with the thing."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._keys = itertools.count()
        self._dropped: list[int] = []

    def tell(self, name: str, key: int | None, *args: object) -> None:
        """Do `name` to the thing of that key. Tensors among `args` travel."""
        dropped, self._dropped[:] = list(self._dropped), []
        travelling = [arg.detach().cpu() if isinstance(arg, Tensor) else arg for arg in args]
        self._ranks.say((dropped, name, key, travelling))

    def key_of(self, thing: object, key: int) -> None:
        """`thing` is known to the others by `key`, for as long as it lives here."""
        weakref.finalize(thing, self._dropped.append, key)

    def new_key(self) -> int:
        return next(self._keys)

    def together(self) -> contextlib.AbstractContextManager:
        """Around what all ranks compute at once."""
        return self._ranks.reporting()

    def agree(self, ids: Tensor) -> Tensor:
        return self._ranks.agree(ids)


@dataclass
class SplitContext(VisualContext):
    """Rank 0's share of the keys and values of what is seen; the others have theirs under the same key."""

    key: int = -1


class SplitGenerator(FrameGenerator):
    """A FrameGenerator on rank 0 whose every call the other ranks repeat."""

    def __init__(
        self,
        lm: DuplexLM,
        batch_size: int,
        sampling: GenerationConfig | Sequence[GenerationConfig],
        seed: int | Sequence[int],
        *,
        lead: Lead,
    ):
        self._lead: Lead | None = None  # nobody follows yet
        super().__init__(lm, batch_size, sampling, seed, agree=lead.agree)
        self.key = lead.new_key()
        lead.tell("open", self.key, batch_size, _plain(self.sampler.settings), self.sampler.seeds)
        lead.key_of(self, self.key)
        self._lead = lead

    def see(self, visual: VisualContext | None) -> None:
        if visual is not None and not isinstance(visual, SplitContext):
            raise ValueError("a split model looks at what its own `see` made")
        self._lead.tell("see", self.key, None if visual is None else visual.key)
        super().see(visual)

    def show(self, frame: VisualContext, rows: Sequence[int]) -> None:
        if not isinstance(frame, SplitContext):
            raise ValueError("a split model looks at what its own `see` made")
        self._lead.tell("show", self.key, frame.key, list(rows))
        super().show(frame, rows)

    def forget(self, rows: Tensor | None = None) -> None:
        if self._lead is not None:
            self._lead.tell("forget", self.key, rows)
        super().forget(rows)

    def reset(
        self,
        rows: Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        samplings: Sequence[GenerationConfig] | None = None,
    ) -> None:
        if self._lead is not None:
            self._lead.tell("reset", self.key, rows, seeds, None if samplings is None else _plain(samplings))
        super().reset(rows, seeds=seeds, samplings=samplings)

    def step(
        self, user_codes: Tensor, *, text_ids: Tensor | None = None, own_codes: Tensor | None = None
    ) -> FrameOut | None:
        self._lead.tell("step", self.key, user_codes, text_ids, own_codes)
        with self._lead.together():
            return super().step(user_codes, text_ids=text_ids, own_codes=own_codes)


def _plain(samplings: Sequence[GenerationConfig]) -> list[dict[str, Any]]:
    return [sampling.model_dump() for sampling in samplings]


class SplitModel(nn.Module):
    """On rank 0, in the place of a VisionSpeechModel: its share of one, and the word to the other ranks."""

    def __init__(self, local: VisionSpeechModel, lead: Lead):
        super().__init__()
        self.local = local
        self._lead = lead

    @property
    def lm(self) -> DuplexLM:
        """This rank's share. It computes only while the other ranks do, so use `generator`."""
        return self.local.lm

    @property
    def tower(self) -> nn.Module | None:
        return self.local.tower

    def see(self, features: Tensor, onset_frames: Tensor, mask: Tensor | None = None) -> SplitContext:
        """As VisionSpeechModel.see, on every rank for its own heads."""
        seen = self.local.see(features, onset_frames, mask)
        key = self._lead.new_key()
        self._lead.tell("look", key, features, onset_frames, mask)
        context = SplitContext(**vars(seen), key=key)
        self._lead.key_of(context, key)
        return context

    def generator(
        self,
        batch_size: int,
        *,
        sampling: GenerationConfig | Sequence[GenerationConfig],
        seed: int | Sequence[int] = 0,
        record: Record | None = None,
    ) -> SplitGenerator:
        """As VisionSpeechModel.generator; what several processes do together can not be recorded."""
        if record is not None:
            raise ConfigError("CUDA graphs with a model that is split over processes: leave one of them out")
        return SplitGenerator(self.lm, batch_size, sampling, seed, lead=self._lead)


class Follower:
    """What a rank other than 0 does: all that rank 0 tells, until it says stop."""

    def __init__(self, model: VisionSpeechModel, ranks: Ranks):
        self.model, self.ranks = model, ranks
        self.things: dict[int, Any] = {}

    def run(self) -> None:
        """Returns at `stop`; RankError when rank 0 is gone."""
        while True:
            dropped, name, key, args = self.ranks.hear()
            for old in dropped:
                self.things.pop(old, None)
            if name == "stop":
                return
            args = [arg.to(self.ranks.device) if isinstance(arg, Tensor) else arg for arg in args]
            # A call that rank 0 may not make (codes of a wrong shape) fails on every rank before they compute
            # together; rank 0 reports it, and the next call finds all as they were.
            with contextlib.suppress(ValueError), self.ranks.reporting(), torch.no_grad():
                getattr(self, f"_{name}")(key, *args)

    def _look(self, key: int, features: Tensor, onset_frames: Tensor, mask: Tensor | None) -> None:
        self.things[key] = self.model.see(features, onset_frames, mask)

    def _open(self, key: int, batch_size: int, samplings: list[dict[str, Any]], seeds: list[int]) -> None:
        options = [GenerationConfig.model_validate(sampling) for sampling in samplings]
        self.things[key] = FrameGenerator(self.model.lm, batch_size, options, seeds, agree=self.ranks.agree)

    def _see(self, key: int, context: int | None) -> None:
        self.things[key].see(None if context is None else self.things[context])

    def _show(self, key: int, frame: int, rows: list[int]) -> None:
        self.things[key].show(self.things[frame], rows)

    def _forget(self, key: int, rows: Tensor | None) -> None:
        self.things[key].forget(rows)

    def _reset(
        self, key: int, rows: Tensor | None, seeds: Sequence[int] | None, samplings: list[dict[str, Any]] | None
    ) -> None:
        options = None if samplings is None else [GenerationConfig.model_validate(sampling) for sampling in samplings]
        self.things[key].reset(rows, seeds=seeds, samplings=options)

    def _step(self, key: int, user_codes: Tensor, text_ids: Tensor | None, own_codes: Tensor | None) -> None:
        self.things[key].step(user_codes, text_ids=text_ids, own_codes=own_codes)


@contextlib.contextmanager
def split_model(
    path_or_id: str | Path | None,
    *,
    num_ranks: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Bundle]:
    """On rank 0: a Bundle (see load_model) whose model is split over `num_ranks` processes of one machine or several.

    Other ranks that a launcher started call `follow`; without a launcher they are started here. When the block ends
    they end. Once in a process: DeepSpeed keeps its groups. ConfigError when the model does not divide by N, DeepSpeed
    is missing, the ranks are not N, or a rank is lost.
    """
    path = resolve(path_or_id)
    check_divisible(parse_config(ModelConfig, read_mapping(path / CONFIG), source=str(path / CONFIG)).lm, num_ranks)
    check_deepspeed()
    plan = {"path": str(path), "dtype": str(dtype).removeprefix("torch.")}
    ranks = Ranks.gather(num_ranks=num_ranks, device=device, plan=plan)
    with ranks.closing_on_error():
        bundle = load_model(path, dtype=dtype)
        settle_threads(bundle.model, num_processes=num_ranks)
        ranks.wait_for("loaded", timeout_sec=LOAD_TIMEOUT_SEC)
        with ranks.reporting():
            shard(bundle.model.lm, num_ranks=num_ranks, local_rank=ranks.local_rank, device=ranks.device)
        bundle.model.to(ranks.device)
        lead = Lead(ranks)
        yield dataclasses.replace(
            bundle, model=SplitModel(bundle.model, lead).eval(), codec=bundle.codec.to(ranks.device)
        )
        lead.tell("stop", None)
        ranks.close()


def follow(*, num_ranks: int, device: str) -> None:
    """On every other rank: load the model that rank 0 loads, keep this rank's share, and step with rank 0."""
    ranks, plan = Ranks.join(num_ranks=num_ranks, device=device)
    try:
        path, dtype = Path(plan["path"]), getattr(torch, plan["dtype"])
        config = parse_config(ModelConfig, read_mapping(path / CONFIG), source=str(path / CONFIG))
        check_deepspeed()
        model = load_speech_model(path, config, dtype=dtype)
    except (ConfigError, OSError) as error:
        ranks.tell_store("failed", " ".join(str(error).split()))
        raise
    settle_threads(model, num_processes=num_ranks)
    model.tower = None  # rank 0 has the eyes
    ranks.tell_store("loaded")
    with ranks.reporting():
        shard(model.lm, num_ranks=num_ranks, local_rank=ranks.local_rank, device=ranks.device)
    Follower(model.to(ranks.device), ranks).run()
    ranks.close()


def _main(num_ranks: str, device: str) -> int:
    """A rank that rank 0 started."""
    try:
        follow(num_ranks=int(num_ranks), device=device)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
