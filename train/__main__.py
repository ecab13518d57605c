"""`python -m train --config configs/train/X.yaml [a.b=c ...]`."""

import argparse
import sys

from mmspeech.config import ConfigError, load_config


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 after one line on what to mend."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Train one stage; running it again resumes.")
    parser.add_argument("--config", required=True, help="a file such as configs/train/tiny_lm.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace those of the file")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # as the deepspeed launcher gives it
    parser.add_argument("--dry-run", action="store_true", help="build everything, learn from one batch, write nothing")
    args = parser.parse_args(argv)
    from train.settings import TrainConfig

    try:
        config = load_config(TrainConfig, args.config, args.overrides)
        if args.dry_run:
            from train.dry_run import dry_run

            dry_run(config)
            return 0
        from train.recipe import train

        print(train(config))
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
