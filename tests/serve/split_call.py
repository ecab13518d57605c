"""Two calls with pictures that come and go, written down frame by frame; as a program, over N processes.

    python split_call.py CHECKPOINT NUM_RANKS NUM_FRAMES OUT [kill-worker | stop-worker | kill-self]

A clip OUT.mp4, where there is one, is shown too. The last word says what happens to a process at frame 20.
"""

import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

import torch
from PIL import Image

from mmspeech.config import GenerationConfig
from mmspeech.frames import frames_to_seconds
from mmspeech.serve import ranks
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.parallel import split_model
from mmspeech.vision.timeline import Timeline

GREEDY = GenerationConfig(text_temperature=0, audio_temperature=0)
RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (64, 64), "blue")
PICTURES = {3: (RED, None), 40: (RED, BLUE), 90: (BLUE, RED), 150: (None, None), 170: (None, BLUE)}
CLIP_AT = 50  # shown to the first call alone: more frames than a model remembers
AGAIN_AT, ACCIDENT_AT, TOLD_AT = 120, 20, 30


def record(bundle, num_frames: int, clip: Path, accident=None) -> dict[str, torch.Tensor]:
    """text [T, B], codes [T, B, K], gate [T, B] and all logits [T, B, V]; the second call starts over on the way.
    clip: may be missing."""
    timeline = Timeline(clip, fps=2) if clip.is_file() else None
    calls = CallBatch(bundle, batch_size=2, sampling=GREEDY)
    sound = 0.1 * torch.randn(num_frames, 2, 1920, generator=torch.Generator().manual_seed(0))
    rows: dict[str, list[torch.Tensor]] = {"text": [], "codes": [], "gate": [], "logits": []}
    for index, pcm in enumerate(sound):
        if index in PICTURES:
            calls.see(PICTURES[index])
        clip_sec = frames_to_seconds(index - CLIP_AT)
        for at_sec, picture in [] if timeline is None else timeline.due(clip_sec):
            calls.show(picture, 0, at_sec=at_sec + frames_to_seconds(CLIP_AT))
        if index == TOLD_AT:
            calls.tell("the circle is red", 1, silent=True)
        if index == AGAIN_AT:
            calls.generator.reset(torch.tensor([False, True]), seeds=[0, 5])
        if index == ACCIDENT_AT and accident is not None:
            accident(calls)
        out, trace = calls.think(calls.listen(pcm)), calls.generator.trace
        rows["logits"].append(torch.cat([trace.text_logits, *trace.depth_logits], dim=1))
        if out is not None:
            for name, value in (("text", out.text_ids), ("codes", out.codes), ("gate", out.gate)):
                rows[name].append(value)
    assert timeline is None or calls.frame_counts[0].shown > 12
    return {name: torch.stack(values) for name, values in rows.items()}


def wrong_codes(calls: CallBatch) -> None:
    """Codes of a wrong shape are refused, and the call goes on."""
    try:
        calls.generator.step(torch.zeros(1, 1, dtype=torch.long))
    except ValueError:
        return
    raise AssertionError("codes of a wrong shape were taken")


def worker() -> int:
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
    return int(children[0])


def main(checkpoint: str, num_ranks: str, num_frames: str, out: str, fate: str = "") -> None:
    torch.set_num_threads(1)
    ranks.STEP_TIMEOUT = timedelta(seconds=5) if fate else ranks.STEP_TIMEOUT
    ends = {
        "kill-worker": lambda calls: os.kill(worker(), signal.SIGKILL),
        "stop-worker": lambda calls: os.kill(worker(), signal.SIGSTOP),
        "kill-self": lambda calls: os.kill(os.getpid(), signal.SIGKILL),
    }
    with split_model(checkpoint, num_ranks=int(num_ranks)) as bundle:
        Path(out).with_suffix(".pid").write_text(str(worker()))
        clip = Path(out).with_suffix(".mp4")
        torch.save(record(bundle, int(num_frames), clip, ends.get(fate, wrong_codes)), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
