"""What loading a checkpoint takes: its size and one tensor, measured from outside while a process does it."""

import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmspeech.config import ModelConfig
from mmspeech.formats.moshi import write_moshi
from mmspeech.lm.model import VisionSpeechModel

MB = 2**20
SLACK_MB = 40  # of the allocator, and of what is imported on the way
SIZES = {"num_heads": 16, "num_layers": 2}
CONFIG = ModelConfig.model_validate(
    {
        "lm": {
            "text_card": 32_000, "audio_card": 2048, "num_codebooks": 8, "delays": [0, 0, *[1] * 7, 0, *[1] * 7],
            "temporal": {"dim": 1024, "ffn_dim": 2816, "context": 100, **SIZES},
            "depth": {"dim": 64, "ffn_dim": 128, "context": 8, "max_period": None, **SIZES},
        },
        "codec": {"kind": "spectral"},
    }
)  # fmt: skip
OURS = """
from mmspeech.checkpoint import load_speech_model
from mmspeech.config import ModelConfig, load_config
from mmspeech.lm.model import VisionSpeechModel
config = load_config(ModelConfig, folder / "config.json")
VisionSpeechModel(ModelConfig.model_validate(SMALL))  # what is imported late, is imported now
input("ready")
kept = load_speech_model(folder, config, dtype=dtype)
"""
THEIRS = """
from mmspeech.formats.moshi import read_moshi
input("ready")
kept = read_moshi(folder).build().to(dtype)
"""
START = """
import sys, pathlib, torch
folder, dtype = pathlib.Path(sys.argv[1]), getattr(torch, sys.argv[2])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same 250 MB of bfloat16 in our layout, and in that of the moshi package."""
    root = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VisionSpeechModel(CONFIG).state_dict().items()}
    state = {key: torch.full(shape, 0.5, dtype=torch.bfloat16) for key, shape in shapes.items()}
    (root / "ours").mkdir()
    save_file(state, root / "ours" / "model.safetensors")
    (root / "ours" / "config.json").write_text(CONFIG.model_dump_json())
    write_moshi(root / "theirs", state, CONFIG)
    return {OURS: root / "ours", THEIRS: root / "theirs"}


def anonymous_mb(pid: int) -> float:
    """Memory that is a process's own: what is mapped from files does not count, the system may drop that."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def peak_mb(program: str, folder: Path, dtype: str) -> float:
    """How much more memory a process has, at most, while it loads `folder`."""
    code = START + program.replace("SMALL", repr(SMALL)) + "input('done')\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.read(5) == b"ready"
        before = most = anonymous_mb(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        stop = time.monotonic() + 120
        while not select.select([process.stdout], [], [], 0.002)[0] and time.monotonic() < stop:
            most = max(most, anonymous_mb(process.pid))
        assert process.stdout.read(4) == b"done"
        return max(most, anonymous_mb(process.pid)) - before
    finally:
        process.kill()
        process.wait()


SMALL = CONFIG.model_dump(mode="json")
SMALL["lm"] |= {"text_card": 8, "audio_card": 8}
for part in ("temporal", "depth"):
    SMALL["lm"][part] |= {"dim": 16, "ffn_dim": 16, "num_layers": 1}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc to read a process's memory from")
@pytest.mark.parametrize("program, dtype", [(OURS, "float32"), (THEIRS, "bfloat16")], ids=["ours", "moshi"])
def test_loading_takes_its_size_and_one_tensor(program, dtype, folders):
    with torch.device("meta"):
        tensors = VisionSpeechModel(CONFIG).to(getattr(torch, dtype)).state_dict().values()
    sizes_mb = [tensor.numel() * tensor.element_size() / MB for tensor in tensors]
    peak = peak_mb(program, folders[program], dtype)
    print(f"{peak:.0f} MB; the model has {sum(sizes_mb):.0f} MB, its largest tensor {max(sizes_mb):.0f} MB")
    assert peak < sum(sizes_mb) + max(sizes_mb) + SLACK_MB
    if dtype == "float32":  # it was measured, not missed
        assert peak > 0.9 * sum(sizes_mb)
