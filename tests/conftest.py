"""Options and fixtures of the whole suite. One thread each: small tensors are slower on two."""

import os
from pathlib import Path

import pytest
import torch
from local_hub import hub
from small_model import CLIP_TOWERS, MEMORY, clip_model, small_model

__all__ = ["hub"]  # a fixture

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


SENTENCES = ("the circle is red", "there are two blue squares", "i cannot see a picture", "hello", "it is at the top")


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory of random weights: every part is there, all of it small."""
    return save_small(tmp_path_factory.mktemp("small"), small_model())


@pytest.fixture(scope="session")
def remembering_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with memory for frames and summaries, and ages that mean something."""
    return save_small(tmp_path_factory.mktemp("remembering"), small_model(**MEMORY))


@pytest.fixture(scope="session", params=[*CLIP_TOWERS, "vit"])
def clip_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one with memory, with eyes that see motion: each of the clip encoders in turn, and one that sees change."""
    return save_small(tmp_path_factory.mktemp(request.param), clip_model(request.param))


def save_small(folder: Path, settings: dict) -> Path:
    from mmspeech.audio.codec import build_codec
    from mmspeech.checkpoint import save_model
    from mmspeech.config import ModelConfig
    from mmspeech.lm.model import VisionSpeechModel
    from mmspeech.tokens.text import train_tokenizer
    from mmspeech.vision.encoder import build_tower

    config = ModelConfig.model_validate(settings)
    torch.manual_seed(0)
    model = VisionSpeechModel(config)
    for projection in model.lm.temporal.fusion.projections:
        if projection.age is not None:
            torch.nn.init.normal_(projection.age.weight)
    model.tower = build_tower(config.vision, pretrained=False)
    tokenizer_file = folder / "tokenizer.model"
    train_tokenizer(SENTENCES * 20, 60, tokenizer_file)
    return save_model(
        folder / "model",
        model=model,
        codec=build_codec(config.codec),
        tokenizer_file=tokenizer_file,
        config=config,
    )


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path):
    """The same, loaded."""
    from mmspeech.checkpoint import load_model

    return load_model(small_checkpoint)


@pytest.fixture(scope="session")
def remembering_bundle(remembering_checkpoint: Path):
    """The one with memory, loaded."""
    from mmspeech.checkpoint import load_model

    return load_model(remembering_checkpoint)


@pytest.fixture(scope="session")
def clip_bundle(clip_checkpoint: Path):
    """The ones that see motion, loaded."""
    from mmspeech.checkpoint import load_model

    return load_model(clip_checkpoint)
