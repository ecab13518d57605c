"""The command line of a stage that has its own program."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from mmspeech.config import ConfigError, ConfigT, load_config


def run_stage(description: str, config_class: type[ConfigT], stage: Callable[[ConfigT], Any]) -> Any:
    """Read `--config FILE [a.b=value ...]` and run the stage; returns what it gives. Bad input: one line, exit 2."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*", help="a.b=value")
    arguments = parser.parse_args()
    try:
        return stage(load_config(config_class, arguments.config, arguments.overrides))
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
