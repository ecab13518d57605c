"""Makes a release of a run: half precision, a card, sampling defaults.

`python -m train.export --run RUN --out DIR [--card CARD.md] [generation.text_temperature=0.3 ...]`
"""

import argparse
import sys
from pathlib import Path

import torch

from mmspeech.checkpoint import TOKENIZER, load_model, save_model
from mmspeech.config import ConfigError, ModelConfig, apply_overrides, parse_config


def export(run: Path, out: Path, *, card: str, overrides: list[str]) -> int:
    """Write the newest checkpoint of `run` to `out` in float16; returns its size in bytes. Raises ConfigError."""
    bundle = load_model(run)
    data = apply_overrides(bundle.config.model_dump(mode="json"), overrides)
    config = parse_config(ModelConfig, data, source=f"configuration of {run}")
    save_model(
        out,
        model=bundle.model,
        codec=bundle.codec,
        tokenizer_file=bundle.path / TOKENIZER,
        config=config,
        card=card,
        dtype=torch.float16,
    )
    return sum(file.stat().st_size for file in out.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--card", type=Path, help="Markdown file that becomes the release's README.md")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings of the model's configuration")
    arguments = parser.parse_args()
    try:
        card = "" if arguments.card is None else arguments.card.read_text(encoding="utf-8")
        size = export(arguments.run, arguments.out, card=card, overrides=arguments.overrides)
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
