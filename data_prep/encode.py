"""`encode`: both channels of every call of a manifest -> codes, one file per call. Can be killed and run again."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from data_prep.calls import Call, parse_entry
from data_prep.files import write_atomic
from data_prep.steps import STEP, How, Item, Outcome, Tally, read_step, run_step
from mmspeech.audio.codec import Codec, codec_hash
from mmspeech.audio.waveform import AudioError, resample
from mmspeech.checkpoint import load_codec
from mmspeech.config import ConfigError
from mmspeech.data.shards import CodecStamp

SILENCE_FRAMES = 50
CHUNK_ITEMS = 32


def encode(*, data: Path, codec_dir: Path, out: Path, how: How, batch_sec: float = 30.0, device: str = "cpu") -> Tally:
    """Encode the calls of `data` into `out`/ID.npy, int16 [2K, T], the model's rows first, then the user's.

    `batch_sec`: seconds of stereo audio encoded at once. ConfigError for a folder with another codec's codes.
    """
    stamp = codec_stamp(load_codec(codec_dir))
    settings = {"codec": stamp.hash, "batch_sec": batch_sec}
    work = EncodeWork(data if data.is_dir() else data.parent, codec_dir, out, batch_sec, device)
    told = {"codec": stamp.model_dump()}
    return run_step("encode", data, out, work, settings=settings, how=how, chunk_items=CHUNK_ITEMS, told=told)


@dataclass(frozen=True)
class EncodeWork:
    """See steps.Work."""

    folder: Path
    codec_dir: Path
    out: Path
    batch_sec: float
    device: str

    def open(self):
        codec = load_codec(self.codec_dir)
        codec.to(self.device)
        return partial(self._chunk, codec)

    def _chunk(self, codec: Codec, number: int, items: list[Item]) -> Iterable[Outcome]:
        calls, found = [], {}
        for place, (where, data) in enumerate(items):
            try:
                calls.append((place, parse_entry(data, where=where, folder=self.folder)))
            except ConfigError as error:
                found[place] = Outcome(where, failed=str(error))
        for batch in _batches(calls, self.batch_sec):
            found |= _encode_batch(batch, codec=codec, out=self.out)
        return [found[place] for place in range(len(items))]


def codes_file(out: Path, call_id: str) -> Path:
    """Where the codes of a call lie."""
    return out / f"{call_id}.npy"


def read_stamp(out: Path) -> CodecStamp:
    """Which codec made the codes in `out`."""
    told = read_step(out).get("codec")
    if told is None:
        raise ConfigError(f"{out}: no {STEP} that names a codec; expected the output folder of data_prep encode")
    return CodecStamp.model_validate(told)


def read_stereo(path: Path, sample_rate_hz: int) -> Tensor:
    """A stereo file as [2, N] float32: the model's channel, then the user's. Raises AudioError."""
    try:
        wave, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: not readable as audio ({error})") from error
    if wave.shape[1] != 2 or not len(wave):
        got = f"{wave.shape[1]} channels, {len(wave)} samples"
        raise AudioError(f"{path}: {got}; expected stereo, the model left and the user right")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: samples that are NaN or infinite")
    return resample(torch.from_numpy(np.ascontiguousarray(wave.T)), rate_hz, sample_rate_hz)


def codec_stamp(codec: Codec) -> CodecStamp:
    """Which codec it is, and what it makes of silence."""
    silence = codec.encode(torch.zeros(1, 1, SILENCE_FRAMES * codec.frame_samples))
    return CodecStamp(
        hash=codec_hash(codec),
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        silence_codes=tuple(silence[0, :, -1].tolist()),
    )


def _batches(calls: list[tuple[int, Call]], batch_sec: float) -> Iterator[list[tuple[int, Call]]]:
    """Calls of like length together, so that little is padded."""
    batch: list[tuple[int, Call]] = []
    for place, call in sorted(calls, key=lambda one: one[1].duration_sec):
        if batch and call.duration_sec * (len(batch) + 1) > batch_sec:
            yield batch
            batch = []
        batch.append((place, call))
    if batch:
        yield batch


def _encode_batch(batch: list[tuple[int, Call]], *, codec: Codec, out: Path) -> dict[int, Outcome]:
    found, read = {}, []
    for place, call in batch:
        try:
            read.append((place, call, read_stereo(call.audio, codec.sample_rate_hz)))
        except AudioError as error:
            found[place] = Outcome(call.id, failed=str(error))
    if not read:
        return found
    samples = max(wave.shape[1] for *_, wave in read)
    waves = torch.stack([torch.nn.functional.pad(wave, (0, samples - wave.shape[1])) for *_, wave in read])
    device = next(codec.parameters()).device
    with torch.no_grad():  # the codec is causal: padding does not touch what is before it
        codes = codec.encode(waves.flatten(0, 1)[:, None].to(device)).cpu()
    codes = codes.unflatten(0, (len(read), 2)).flatten(1, 2).to(torch.int16).numpy()
    for (place, call, wave), rows in zip(read, codes, strict=True):
        num_frames = -(-wave.shape[1] // codec.frame_samples)
        _save(codes_file(out, call.id), rows[:, :num_frames])
        duration_sec = round(wave.shape[1] / codec.sample_rate_hz, 3)
        entry = {"id": call.id, "path": f"{call.id}.npy", "frames": num_frames, "duration": duration_sec}
        found[place] = Outcome(call.id, entry)
    return found


def _save(file: Path, codes: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    held = io.BytesIO()
    np.save(held, np.ascontiguousarray(codes))
    write_atomic(file, held.getvalue())
