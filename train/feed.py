"""From shard sets to batches: which calls, in which order, resumable to the batch.

Calls are drawn in pools. A pool is a deterministic function of the seed, its number, the calls each source has given
before and the source weights at that moment; all four are in the Position that a checkpoint keeps.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmspeech.config import ConfigError, Problems
from mmspeech.data.collate import NOTHING, Augmentation, Layout, PictureFormat, Row, joined, stack
from mmspeech.data.shards import HUB, ShardSet, fetch_set
from mmspeech.types import Batch
from train.settings import DataConfig, SourceConfig

VALID_SEED = 1_000_003


@dataclass(frozen=True)
class Position:
    """The next batch: number `batch` of pool `pool`. `given`: calls each source gave before that pool; `batches`: those
    given out before it; `progress`: how far the run was when it was drawn (None: not drawn yet)."""

    pool: int = 0
    batch: int = 0
    batches: int = 0
    given: tuple[int, ...] = ()
    progress: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Position":
        return cls(**{**data, "given": tuple(data["given"])})


@dataclass(frozen=True)
class Draw:
    """Calls to lay out as one, each behind its silence (see mmspeech.data.collate.joined); a single one is cropped to
    `max_frames`. `seed` feeds everything random about them."""

    source: int
    calls: tuple[int, ...]
    silences_frames: tuple[int, ...]
    max_frames: int
    variant: str
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The draws of one batch, and the position after it (for one process of several: after all batches of the step)."""

    draws: tuple[Draw, ...]
    after: Position | None = None


@dataclass
class Fed:
    """A batch with the position after it and one line for each call that had to be left out."""

    batch: Batch
    after: Position | None
    problems: list[str]


class Planner:
    """Plans batches without end. `progress_of(batches)` says how far the run is (0..1) after that many batches."""

    def __init__(
        self,
        sources: list[tuple[ShardSet, SourceConfig]],
        *,
        config: DataConfig,
        seed: int,
        progress_of: Callable[[int], float],
    ):
        self.sources, self.config, self.seed, self.progress_of = sources, config, seed, progress_of
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def plans(self, position: Position) -> Iterator[Plan]:
        """Plans from `position` on, each with the position after it."""
        given = position.given or (0,) * len(self.sources)
        pool, first, batches = position.pool, position.batch, position.batches
        progress = position.progress
        while True:
            if progress is None:
                progress = self.progress_of(batches)
            planned, given_after = self._pool(pool, given, progress)
            for index in range(first, len(planned)):
                last = index + 1 == len(planned)
                after = (
                    Position(pool + 1, 0, batches + len(planned), given_after)
                    if last
                    else Position(pool, index + 1, batches, given, progress)
                )
                yield Plan(tuple(planned[index]), after)
            pool, first, batches, given, progress = pool + 1, 0, batches + len(planned), given_after, None

    def _pool(self, number: int, given: tuple[int, ...], progress: float) -> tuple[list[list[Draw]], tuple[int, ...]]:
        rng = np.random.default_rng([self.seed, number])
        weights = np.array([weight_at(source, progress) for _, source in self.sources])
        if weights.sum() <= 0:
            raise ConfigError("data.sources: all weights are 0 at this point of the run; expected one above 0")
        counts, drawn, frames = list(given), [], 0
        while frames < self.config.pool_batches * self.config.batch_frames:
            which = int(rng.choice(len(weights), p=weights / weights.sum()))
            length, draw = self._draw(which, counts[which], rng, seed=(self.seed, number, len(drawn)))
            counts[which] += len(draw.calls)
            drawn.append((length, draw))
            frames += length
        batches = pack_by_length(drawn, self.config.batch_frames)
        return [batches[i] for i in rng.permutation(len(batches))], tuple(counts)

    def _draw(self, which: int, count: int, rng: np.random.Generator, *, seed: tuple[int, ...]) -> tuple[int, Draw]:
        """The next call of a source, or as many as make a long one, and how many frames that is."""
        shards, source = self.sources[which]
        longest = longest_frames(source, self.config)
        calls, silences, length = [], [], 0
        while not calls or source.join_frames is not None:
            index = self._next_index(which, count + len(calls))
            silence = _draw_silence(source.join_silence_frames, rng) if calls else 0
            frames = silence + int(shards.num_frames[index])
            if calls and length + frames > longest:
                break
            calls, silences, length = [*calls, index], [*silences, silence], min(length + frames, longest)
        return length, Draw(which, tuple(calls), tuple(silences), longest, _choose_variant(source, rng), seed)

    def _next_index(self, which: int, count: int) -> int:
        """Call number `count` of a source: every call once per epoch, in an order of that epoch's own."""
        size = len(self.sources[which][0])
        epoch, place = divmod(count, size)
        if self._orders.get(which, (-1,))[0] != epoch:
            self._orders[which] = epoch, np.random.default_rng([self.seed, which, epoch]).permutation(size)
        return int(self._orders[which][1][place])


class CallBatches(torch.utils.data.Dataset):
    """Plan -> Fed. Runs in workers: reads calls, lays them out, decodes pictures. Calls that fail are left out; where
    all of them do, the batch is one frame of nothing, from which nothing is learned."""

    def __init__(self, sources: list[tuple[ShardSet, SourceConfig]], *, layout: Layout, pictures: PictureFormat | None):
        self.sources, self.layout, self.pictures = sources, layout, pictures

    def __getitem__(self, plan: Plan) -> Fed:
        rows, problems = [], []
        for draw in plan.draws:
            try:
                rows.append(self._row(draw))
            except ConfigError as error:
                told = ", ".join(map(str, draw.calls))
                problems.append(f"call {told} of its source left out: {error}")
        try:
            batch = stack(rows or [self._nothing()], pictures=self.pictures)
        except ConfigError:
            rows, undecoded = self._sift(rows)
            problems += undecoded
            batch = stack(rows or [self._nothing()], pictures=self.pictures)
        batch.seed = int(np.random.SeedSequence([*plan.draws[0].seed, 2]).generate_state(1)[0])
        return Fed(batch, plan.after, problems)

    def _row(self, draw: Draw) -> Row:
        shards, source = self.sources[draw.source]
        rng = np.random.default_rng([*draw.seed, 1])
        keep = source.visuals == "keep" and self.pictures is not None
        sample = joined([shards[index] for index in draw.calls], draw.silences_frames, self.layout.silence_codes)
        return self.layout(sample, variant=draw.variant, max_frames=draw.max_frames, keep_visuals=keep, rng=rng)

    def _nothing(self) -> Row:
        streams = 1 + 2 * self.sources[0][0].info.codec.num_codebooks
        return Row("nothing", torch.full((streams, 1), NOTHING), torch.zeros(1), torch.zeros(1))

    def _sift(self, rows: list[Row]) -> tuple[list[Row], list[str]]:
        good, problems = [], []
        for row in rows:
            try:
                stack([row], pictures=self.pictures)
                good.append(row)
            except ConfigError as error:
                problems.append(f"call {row.id} left out: {error}")
        return good, problems


def open_sources(sources: dict[str, SourceConfig], *, at: Callable[[str], Path], codec_hash: str | None) -> list:
    """[(ShardSet, SourceConfig)]; raises ConfigError naming every set that cannot be used."""
    opened, problems = [], Problems()
    for name, source in sources.items():
        with problems.noted(f"data source {name!r}: "):
            path = fetch_set(source.path) if source.path.startswith(HUB) else at(source.path)
            opened.append((ShardSet(path, codec_hash=codec_hash), source))
    problems.tell()
    return opened


def build_layout(config: DataConfig, *, tokenizer, stamp, training: bool) -> Layout:
    """The layout of training calls, or of validation calls (undisturbed). `stamp`: CodecStamp of the shards."""
    disturbed = Augmentation(
        drop_acoustic=config.drop_acoustic,
        keep_codebooks=config.keep_codebooks,
        replace_codes=config.replace_codes,
        mute_gaps=config.mute_gaps,
    )
    augmentation = disturbed if training else Augmentation()
    return Layout(
        tokenizer=tokenizer,
        silence_codes=stamp.silence_codes,
        codebook_size=stamp.codebook_size,
        silent_share=config.silent_share,
        transcribe_delay_frames=config.transcribe_delay_frames,
        augmentation=augmentation,
    )


def own_share(plans: Iterator[Plan], *, rank: int, world: int, per_step: int) -> Iterator[Plan]:
    """The plans of process `rank` of `world`: of every `per_step` batches, each process takes every world-th."""
    while True:
        step = list(itertools.islice(plans, per_step))
        for plan in step[rank::world]:
            yield replace(plan, after=step[-1].after)


def training_loader(dataset: CallBatches, plans: Iterator[Plan], *, workers: int) -> Iterator[Fed]:
    """Batches in the order of `plans`, loaded ahead by `workers` processes."""
    options = {"multiprocessing_context": "fork", "prefetch_factor": 4} if workers else {}
    loader = torch.utils.data.DataLoader(
        dataset,
        sampler=_Once(plans),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        generator=torch.Generator(),  # else making the loader would draw from the run's own random numbers
        **options,
    )
    return iter(loader)


def validation_plans(shards: ShardSet, source: SourceConfig, *, config: DataConfig, batches: int) -> list[Plan]:
    """The same batches at every evaluation: the first calls of the set, as many as fill `batches`."""
    rng = np.random.default_rng(VALID_SEED)
    longest = longest_frames(source, config)
    drawn, frames = [], 0
    for index, num_frames in enumerate(shards.num_frames):
        if frames >= batches * config.batch_frames:
            break
        length = min(int(num_frames), longest)
        drawn.append((length, Draw(0, (index,), (0,), longest, _choose_variant(source, rng), (VALID_SEED, index))))
        frames += length
    return [Plan(tuple(draws)) for draws in pack_by_length(drawn, config.batch_frames)]


def longest_frames(source: SourceConfig, config: DataConfig) -> int:
    """How many frames a call of a source, or several that are joined, may have."""
    return source.join_frames or source.max_frames or config.max_frames


def share_past(sources: list[tuple[ShardSet, SourceConfig]], *, config: DataConfig, context_frames: int) -> float:
    """Of all frames that are drawn over a run, the share that has more before it than a model remembers."""
    past = total = 0.0
    for shards, source in sources:
        weight = (weight_at(source, 0.0) + weight_at(source, 1.0)) / 2
        longest = longest_frames(source, config)
        lengths = np.minimum(shards.num_frames, longest) if source.join_frames is None else np.array([longest])
        past += weight * float(np.maximum(lengths - context_frames, 0).mean())
        total += weight * float(lengths.mean())
    return past / total if total else 0.0


def weight_at(source: SourceConfig, progress: float) -> float:
    """The weight of a source when `progress` 0..1 of the run is done."""
    end = source.weight if source.end_weight is None else source.end_weight
    return source.weight + (end - source.weight) * min(1.0, progress)


def pack_by_length(drawn: list[tuple[int, Draw]], batch_frames: int) -> list[list[Draw]]:
    """Calls of like length together; a batch, padded to its longest call, has at most `batch_frames` frames."""
    batches: list[list[Draw]] = []
    current: list[Draw] = []
    for length, draw in sorted(drawn, key=lambda pair: pair[0]):
        if current and (len(current) + 1) * length > batch_frames:
            batches.append(current)
            current = []
        current.append(draw)
    return [*batches, current] if current else batches


class _Once(torch.utils.data.Sampler):
    """Hands the loader an iterator as it is."""

    def __init__(self, plans: Iterator[Plan]):
        self.plans = plans

    def __iter__(self) -> Iterator[Plan]:
        return self.plans


def _as_is(item: Any) -> Any:
    return item


def _draw_silence(longest_frames: int, rng: np.random.Generator) -> int:
    """Mostly short, now and then nearly the longest: the cube of an even draw."""
    return int((longest_frames + 1) * rng.random() ** 3)


def _choose_variant(source: SourceConfig, rng: np.random.Generator) -> str:
    shares = source.variants.model_dump()
    total = sum(shares.values())
    return str(rng.choice(list(shares), p=[share / total for share in shares.values()]))
