"""Two calls with pictures that come and go, written down frame by frame; as a program, over N processes.

    python split_call.py CHECKPOINT NUM_RANKS NUM_FRAMES OUT [kill-worker | stop-worker | kill-self]

The last word says what happens to a process at frame 20.
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
from mmspeech.serve import ranks
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.parallel import split_model

GREEDY = GenerationConfig(text_temperature=0, audio_temperature=0)
RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (64, 64), "blue")
PICTURES = {3: (RED, None), 40: (RED, BLUE), 90: (BLUE, RED), 150: (None, None), 170: (None, BLUE)}
SHOWN = range(50, 145, 7)  # to the first call alone: more than a model remembers
AGAIN_AT, ACCIDENT_AT = 120, 20


def record(bundle, num_frames: int, accident=None) -> dict[str, torch.Tensor]:
    """text [T, B], codes [T, B, K], gate [T, B] and all logits [T, B, V]; the second call starts over on the way."""
    calls = CallBatch(bundle, batch_size=2, sampling=GREEDY)
    sound = 0.1 * torch.randn(num_frames, 2, 1920, generator=torch.Generator().manual_seed(0))
    rows: dict[str, list[torch.Tensor]] = {"text": [], "codes": [], "gate": [], "logits": []}
    for index, pcm in enumerate(sound):
        if index in PICTURES:
            calls.see(PICTURES[index])
        if index in SHOWN:
            calls.show(RED.rotate(index), 0)
        if index == AGAIN_AT:
            calls.generator.reset(torch.tensor([False, True]), seeds=[0, 5])
        if index == ACCIDENT_AT and accident is not None:
            accident(calls)
        out, trace = calls.think(calls.listen(pcm)), calls.generator.trace
        rows["logits"].append(torch.cat([trace.text_logits, *trace.depth_logits], dim=1))
        if out is not None:
            for name, value in (("text", out.text_ids), ("codes", out.codes), ("gate", out.gate)):
                rows[name].append(value)
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
        torch.save(record(bundle, int(num_frames), ends.get(fate, wrong_codes)), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
