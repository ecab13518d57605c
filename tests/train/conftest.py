"""A small run: a random checkpoint, a few made-up calls with pictures, and a configuration over them."""

import pytest
from made_up import made_up_call

from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import load_model
from mmspeech.data.shards import CodecStamp, write_shards
from train.settings import TrainConfig


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its settings for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def calls(tmp_path_factory, small_checkpoint):
    """A folder with the shard sets `train` and `valid`."""
    codec = load_model(small_checkpoint).codec
    stamp = CodecStamp(hash=codec_hash(codec), num_codebooks=3, codebook_size=32, silence_codes=(1, 2, 3))
    folder = tmp_path_factory.mktemp("calls")
    for name, count, seed in (("train", 11, 0), ("valid", 3, 1)):
        write_shards(folder / name, [made_up_call(i, seed) for i in range(count)], codec=stamp)
    return folder


@pytest.fixture
def make_config(tmp_path, calls, small_checkpoint):
    """A TrainConfig of a new run, with changes."""

    def make(**changes) -> TrainConfig:
        shares = {"dialogue": 0.6, "speechless": 0.2, "transcribe": 0.2}
        settings = {
            "root": str(tmp_path),
            "run": "run",
            "init": {"checkpoint": str(small_checkpoint)},
            "trainable": ["all"],
            "data": {
                "sources": {"calls": {"path": str(calls / "train"), "variants": shares}},
                "valid": {"calls": {"path": str(calls / "valid")}},
                "batch_frames": 120,
                "pool_batches": 3,
                "drop_acoustic": 0.3,
                "replace_codes": 0.1,
            },
            "optim": {"learning_rate": 1e-2, "warmup_steps": 1},
            "max_steps": 4,
            "device": "cpu",
            "log_every_steps": 1,
            "eval_every_steps": 2,
            "save_every_steps": 2,
            "eval_batches": 1,
            "sample_every_steps": 0,
        }
        return TrainConfig.model_validate(settings | changes)

    return make
