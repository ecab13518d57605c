"""`python -m data_prep VERB`: from public sets, own recordings or a rendered world to checked shards. Every step can be
killed and run again."""

import sys

import typer

from data_prep import chain_verbs, world_verbs
from data_prep.files import no_room
from mmspeech.config import ConfigError

_UsageError = typer.BadParameter.__base__  # what the command line parser raises
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

app.registered_commands += chain_verbs.app.registered_commands + world_verbs.app.registered_commands


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 when something failed on the way, or 2 after one line on what to mend."""
    arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return app(args=arguments, prog_name="python -m data_prep", standalone_mode=False) or 0
    except _UsageError as error:
        message = f"{error.format_message()} (`python -m data_prep {arguments[0]} --help` tells more)"
    except (ConfigError, OSError) as error:
        message = str(error)
        if no_room(error):
            message = f"no room left to write ({error}); make room, and the same command goes on from here"
    except typer.Abort:
        typer.echo("data_prep: stopped; the same command goes on from here", err=True)
        return 130
    typer.echo(f"data_prep: {' '.join(message.split())}", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
