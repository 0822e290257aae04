"""The command line: `xrd run`. Each command imports what it needs, so that `xrd --help` answers at once."""

import os
import sys
from typing import Annotated

import typer

from xrd_helpers import __version__
from xrd_helpers.config import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool):
    if wanted:
        print(f"xrd {__version__}")
        raise typer.Exit()


@app.callback()
def xrd(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
):
    """Extend X-ray diffraction amplitudes from 1.5 to 0.8 Å, and solve the structure."""


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="Profile of config.yaml: smoke, quick or full.")] = "quick",
    only: Annotated[list[str], typer.Option(help="Notebooks to run, by number or name, as in 02,05.")] = [],
    set_: Annotated[list[str], typer.Option("--set", help="Change a parameter, as in 02_train_unet.epochs=3.")] = [],
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last notebook that finished.")] = False,
):
    """Run the notebooks in their order; results, pages and a summary go to runs/PROFILE."""
    from xrd_helpers import pipeline

    wanted = [name.strip() for text in only for name in text.split(",") if name.strip()]
    if only and not wanted:
        raise UserError("--only names no notebook: write it as in --only 02,05")
    try:
        pipeline.run(profile, only=wanted, overrides=set_, resume=resume)
    except pipeline.NotebookFailed as error:
        print(f"{error}\nOnce that is mended, the same command with --resume goes on from there.", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print("Stopped. The same command with --resume goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None


def main():
    """Run the command line; a mistake of the user gets one sentence, and XRD_TRACEBACK=1 shows where it arose."""
    try:
        app()
    except (UserError, ValueError, OSError) as error:
        if os.environ.get("XRD_TRACEBACK"):
            raise
        print(f"xrd: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _sentence(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    main()
