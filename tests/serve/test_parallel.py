"""A model split over processes, really started: it says what one process says, and a lost process ends the call."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clips import write_clip
from split_call import main as split_call_main
from split_call import record

from mmspeech.audio.waveform import write_wav
from mmspeech.checkpoint import EMBEDDED, load_model
from mmspeech.config import ConfigError
from mmspeech.serve.ranks import RankError, launched_rank, own_device
from mmspeech.serve.sharding import check_deepspeed, check_divisible

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.modules[split_call_main.__module__].__file__)
FRAMES = 200


def launch(*command: object) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=570, check=False)


def assert_equal_to_one_process(checkpoint: Path, folder: Path) -> None:
    pytest.importorskip("av")
    write_clip(folder / "two.mp4", num_frames=150)
    done = launch(SCRIPT, checkpoint, 2, FRAMES, folder / "two.pt")
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(folder / "two.pt", weights_only=True)
    one = record(load_model(checkpoint), FRAMES, folder / "two.mp4")
    assert one["logits"].shape[0] == FRAMES
    assert torch.equal(one["text"], two["text"]) and torch.equal(one["codes"], two["codes"])
    assert one["codes"].unique().numel() > 2, "a call that always says the same shows little"
    torch.testing.assert_close(two["logits"], one["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(two["gate"], one["gate"], atol=1e-5, rtol=0)
    assert one["gate"].max() > 0


def test_two_processes_say_what_one_says(remembering_checkpoint, tmp_path):
    """Greedy, 200 frames of two calls, with pictures and a clip that come, change and go, more frames than are
    remembered, one call starting over, and a mistake of the caller in between."""
    assert_equal_to_one_process(remembering_checkpoint, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_say_what_one_says_with_eyes_for_motion(clip_checkpoint, tmp_path):
    assert_equal_to_one_process(clip_checkpoint, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_say_what_one_says_with_the_embedded_model(tmp_path):
    assert_equal_to_one_process(EMBEDDED, tmp_path)


@pytest.mark.parametrize("fate", ["kill-worker", pytest.param("stop-worker", marks=pytest.mark.slow)])
def test_a_lost_rank_ends_the_call_with_its_name(fate, small_checkpoint, tmp_path):
    done = launch(SCRIPT, small_checkpoint, 2, 40, tmp_path / "out.pt", fate)
    assert done.returncode == 1 and not (tmp_path / "out.pt").exists()
    said = [line for line in done.stderr.splitlines() if "RankError: " in line]
    expected = "rank 1 ended with exit code -9" if fate == "kill-worker" else "is gone or does not answer"
    assert said and expected in said[-1], done.stderr[-3000:]
    assert ended(int((tmp_path / "out.pid").read_text()))


def test_the_ranks_do_not_outlive_rank_0(small_checkpoint, tmp_path):
    done = launch(SCRIPT, small_checkpoint, 2, 40, tmp_path / "out.pt", "kill-self")
    assert done.returncode == -9
    assert "rank 1 of 2 stops: rank 0 is gone" in done.stderr
    assert ended(int((tmp_path / "out.pid").read_text()))


def ended(pid: int) -> bool:
    """Whether that process ends within a few seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "launcher", [(), pytest.param(("-m", "torch.distributed.run", "--nproc_per_node", "2"), marks=pytest.mark.slow)]
)
def test_talk_with_and_without_a_launcher(launcher, small_checkpoint, tmp_path):
    """One line of JSON, and the sound that one process makes."""
    torch.manual_seed(0)
    write_wav(tmp_path / "question.wav", 0.1 * torch.randn(24_000))
    talk = ["-m", "mmspeech.cli", "talk", "--model", small_checkpoint, "--audio", tmp_path / "question.wav", "--json"]
    talk += ["--max-sec", "2", "--image", ROOT / "examples" / "scene.png"]
    one = launch(*talk, "--out", tmp_path / "one.wav")
    two = launch(*launcher, *talk, "--out", tmp_path / "two.wav", "--tensor-parallel", "2")
    assert two.returncode == 0, two.stderr[-3000:]
    assert json.loads(two.stdout)["text"] == json.loads(one.stdout)["text"]
    assert (tmp_path / "two.wav").read_bytes() == (tmp_path / "one.wav").read_bytes()


@pytest.mark.slow
def test_bench_stands_beside_one_process(small_checkpoint, tmp_path):
    out = tmp_path / "bench.json"
    bench = ["-m", "mmspeech.cli", "bench", "--model", small_checkpoint, "--frames", 20, "--out", out]
    done = launch(*bench, "--tensor-parallel", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result["tensor_parallel"] == 2 and result["frames_equal"] == 20
    assert {f"think, {name}" for name in ("2 processes", "one process")} < result["ms"].keys()


def test_heads_must_divide(small_bundle):
    check_divisible(small_bundle.config.lm, 2)
    with pytest.raises(ConfigError, match=r"3: does not divide the 2 heads of lm.temporal.*over 1, 2$"):
        check_divisible(small_bundle.config.lm, 3)


def test_without_deepspeed_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="DeepSpeed, which is not installed: pip install"):
        check_deepspeed()


@pytest.mark.parametrize(("asked", "started"), [(2, 3), (1, 2)])
def test_the_launcher_must_start_as_many(asked, started, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(started))
    with pytest.raises(RankError, match=f"started {started} ranks, --tensor-parallel is {asked}"):
        launched_rank(asked)


def test_devices_are_one_per_rank():
    assert own_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(ConfigError, match="expected cpu or cuda"):
        own_device("cuda:1", 0)
    with pytest.raises(ConfigError, match="rank 99 has no GPU"):
        own_device("cuda", 99)


def test_a_rank_that_cannot_start_says_why(small_checkpoint):
    """Nothing waits for it."""
    code = (
        "import sys; from mmspeech.serve import ranks\n"
        "from mmspeech.serve.parallel import split_model\n"
        "start = ranks._start\n"
        "ranks._start = lambda rank, size, port, device: start(rank, size, port, 'tpu')\n"
        "with split_model(sys.argv[1], num_ranks=2): pass"
    )
    done = launch("-c", code, small_checkpoint)
    assert done.returncode == 1 and "rank 1 ended with exit code 3" in done.stderr.splitlines()[-1]
    assert "error: --device tpu: with --tensor-parallel, expected cpu or cuda" in done.stderr
