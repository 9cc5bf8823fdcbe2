"""The console script: runs a command and turns what goes wrong into one sentence."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from leukoscope.cli import show
from leukoscope.cli.commands import app
from leukoscope.errors import InputError, LeukoscopeError


def run() -> NoReturn:
    """Exit codes of DESIGN.md: 0 done, 2 bad input or usage, 3 a leak was found, 1 a bug."""
    warnings.simplefilter("ignore")  # libraries' remarks to programmers
    try:
        code = app(standalone_mode=False)
    except LeukoscopeError as problem:
        code = _say(problem)
    except (KeyboardInterrupt, typer.Abort):
        code = _say(InputError("Stopped by ctrl-C; nothing half-written was left behind"))
    except MemoryError:
        code = _say(InputError("The memory is full", fix="Close other programs, or use less data."))
    except TyperException as problem:
        code = _say(_usage(problem))
    except typer.Exit as stop:
        code = stop.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as problem:  # noqa: BLE001 - the last net: a bug is said, not dumped
        code = _bug(problem)
    sys.exit(code or 0)


def _say(problem: LeukoscopeError) -> int:
    show.error(problem.message, problem.fix)
    return problem.exit_code


def _usage(problem: TyperException) -> InputError:
    """A misuse of the command line in our form; typer names the nearest match itself."""
    context = getattr(problem, "ctx", None)
    where = context.command_path if context else "leukoscope"
    text = " ".join(problem.format_message().split()).rstrip(".?")
    return InputError(f"{text}{'?' if 'Did you mean' in text else ''}", fix=f"See: {where} --help")


def _bug(problem: Exception) -> int:
    if os.environ.get("LEUKOSCOPE_DEBUG"):
        raise problem
    show.error(
        f"This is a bug in Leukoscope: {type(problem).__name__}: {problem}",
        "Please report it with the command you ran; LEUKOSCOPE_DEBUG=1 shows where it happened.",
    )
    return 1
