"""Options and fixtures of the whole suite. One thread: small tensors are slower on two."""

from pathlib import Path

import pytest
import torch
from local_hub import hub
from small_model import SMALL_MODEL

__all__ = ["hub"]  # a fixture

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


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
    from mmspeech.audio.codec import build_codec
    from mmspeech.checkpoint import save_model
    from mmspeech.config import ModelConfig
    from mmspeech.lm.model import VisionSpeechModel
    from mmspeech.tokens.text import train_tokenizer
    from mmspeech.vision.encoder import build_tower

    folder = tmp_path_factory.mktemp("small")
    config = ModelConfig.model_validate(SMALL_MODEL)
    torch.manual_seed(0)
    model = VisionSpeechModel(config)
    model.tower = build_tower(config.vision)
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
