"""The moshi package's layout of speech to text (kyutai/stt-1b-en_fr, stt-2.6b-en) -> our Listener."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmspeech.audio.codec import Codec
from mmspeech.checkpoint import build_empty, load_weights, read_tensors
from mmspeech.config import parse_config, read_mapping
from mmspeech.formats.groups import ConvertError, import_tensors, weights_file
from mmspeech.formats.kyutai_keys import listener_groups
from mmspeech.formats.mimi import MIMI, load_mimi
from mmspeech.formats.moshi import CONFIG, WEIGHTS, join_projections
from mmspeech.formats.moshi_config import FIXED, IGNORED, NORMS, RELEASED
from mmspeech.formats.moshivis_config import inner_width
from mmspeech.lm.listener import Listener, ListenerConfig
from mmspeech.tokens.text import TextTokenizer

_EXTRA = "extra_heads_num_heads"


@dataclass
class ListenerBundle:
    """Everything that transcribing needs."""

    model: Listener
    codec: Codec
    tokenizer: TextTokenizer


def load_listener(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ListenerBundle:
    """Load a directory of theirs. Raises ConvertError or CheckpointError, one line each."""
    if not (path / CONFIG).is_file():
        raise ConvertError(f"{path}: no {CONFIG}; expected a speech to text model as the moshi package loads it")
    data = read_mapping(path / CONFIG)
    model = read_listener(path, data, device=device, dtype=dtype)
    mimi, tokenizers = path / (data.get("mimi_name") or MIMI), sorted(path.glob("*.model"))
    told = data.get("tokenizer_name")
    tokenizer = path / told if told else (tokenizers or [path / "tokenizer.model"])[0]
    return ListenerBundle(model, load_mimi(mimi, model.config.codec).to(device), TextTokenizer(tokenizer))


def read_listener(
    path: Path, data: dict[str, Any], *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Listener:
    """The language model alone; data: what config.json holds."""
    config = listener_config(data, source=str(path / CONFIG))
    file = weights_file(path, data.get("moshi_name") or WEIGHTS)
    model = build_empty(lambda: Listener(config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = join_projections(read_tensors(file, dtype=dtype, device=device))
    tensors.pop("depformer_in.0.weight", None)  # their class makes it though nothing reads it
    load_weights(model, import_tensors(tensors, listener_groups(config), shapes, source=file), source=file)
    return model.to(device).eval()


def listener_config(data: dict[str, Any], *, source: str) -> ListenerConfig:
    """Their settings -> ours; raises ConvertError for what we cannot compute, and for models that speak."""
    if data.get("dep_q") != 0:
        raise ConvertError(
            f"{source}: dep_q {data.get('dep_q')}: a model that speaks; `mmspeech convert` and `talk` are for it"
        )
    fixed = {key: allowed for key, allowed in FIXED.items() if not key.startswith("depformer") and key != _EXTRA}
    problems = [
        f"{key} {data[key]!r} is not supported (only {allowed[0]!r})"
        for key, allowed in fixed.items()
        if data.get(key, allowed[0]) not in allowed
    ]
    known = RELEASED | FIXED | dict.fromkeys(IGNORED)
    problems += [f"unknown key '{key}'" for key in data if key not in known and not key.startswith("depformer_")]
    theirs = RELEASED | {key: value for key, value in data.items() if key in RELEASED}
    if any(data.get("delays", [0])):
        problems.append(f"delays {data['delays']}: expected none in a model that only listens")
    if theirs["norm"] not in NORMS:
        problems.append(f"norm {theirs['norm']!r}: expected one of {', '.join(NORMS)}")
    if theirs["text_card_out"] not in (None, theirs["text_card"]):
        problems.append(f"text_card_out {theirs['text_card_out']}: expected text_card {theirs['text_card']}")
    if problems:
        raise ConvertError(f"{source}: " + "; ".join(problems))
    return parse_config(ListenerConfig, _settings(data, theirs), source=source)


def _settings(data: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    dim, told = theirs["dim"], data.get("stt_config") or {}
    norm, norm_eps = NORMS[theirs["norm"]]
    temporal = {
        "dim": dim, "num_heads": theirs["num_heads"], "num_layers": theirs["num_layers"],
        "ffn_dim": inner_width(int(theirs["hidden_scale"] * dim), dim), "context": theirs["context"],
        "max_period": float(theirs["max_period"]), "norm": norm, "norm_eps": norm_eps,
    }  # fmt: skip
    return {
        "text_card": theirs["text_card"],
        "audio_card": theirs["card"],
        "num_codebooks": theirs["n_q"],
        "text_pad_id": theirs["existing_text_padding_id"],
        "text_epad_id": theirs["existing_text_end_padding_id"],
        "temporal": temporal,
        "num_extra_heads": data.get(_EXTRA, 0),
        "extra_head_dim": data.get("extra_heads_dim", 6),
        "delay_sec": told.get("audio_delay_seconds", 0.5),
        "prefix_sec": told.get("audio_silence_prefix_seconds", 0.0),
        "codec": {"kind": "mimi", "num_codebooks": theirs["n_q"], "codebook_size": theirs["card"]},
    }
