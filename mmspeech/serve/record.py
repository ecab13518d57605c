"""Keeps calls where the one who runs the server asked for it: a stereo wav and what was said, in time."""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmspeech.frames import SAMPLE_RATE_HZ
from mmspeech.serve.call import CallEnd
from mmspeech.serve.session import StepOut, Transcript

if TYPE_CHECKING:
    from mmspeech.serve.line import Line


@contextlib.contextmanager
def recording(line: "Line", folder: Path | None) -> Iterator[None]:
    """Write NAME.wav (left the model, right the caller) and NAME.json of the call inside, as it goes on; None: nothing
    is kept."""
    if folder is None:
        yield
        return
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
    transcript = Transcript()
    with soundfile.SoundFile(stem.with_suffix(".wav"), "w", SAMPLE_RATE_HZ, 2, subtype="PCM_16") as wav:

        def keep(event: StepOut | CallEnd) -> None:
            if isinstance(event, StepOut):
                wav.write(torch.stack([event.pcm, event.heard], dim=1).clamp(-1, 1).numpy())
                if event.text is not None:
                    transcript.add(event.text, start_sec=event.start_sec, gate=event.gate)

        line.listeners.append(keep)
        try:
            yield
        finally:
            line.listeners.remove(keep)
    words = [asdict(word) for word in transcript.words]
    stem.with_suffix(".json").write_text(json.dumps({"words": words}), encoding="utf-8")
