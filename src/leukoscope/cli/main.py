"""The console script: runs a command and turns what goes wrong into one sentence."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

import click
import typer

from leukoscope.cli import show
from leukoscope.cli.commands import app
from leukoscope.errors import InputError, LeukoscopeError, nearest


def run() -> NoReturn:
    """Exit codes of DESIGN.md: 0 done, 2 bad input or usage, 3 a leak was found, 1 a bug."""
    warnings.simplefilter("ignore")  # libraries' remarks to programmers
    try:
        code = app(standalone_mode=False)
    except LeukoscopeError as problem:
        code = _say(problem)
    except (KeyboardInterrupt, click.Abort):
        code = _say(InputError("Stopped by ctrl-C; nothing half-written was left behind"))
    except MemoryError:
        code = _say(InputError("The memory is full", fix="Close other programs, or use less data."))
    except click.ClickException as problem:
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


def _usage(problem: click.ClickException) -> InputError:
    """A misuse of the command line in our form: what was got, the nearest match, the fix."""
    text = " ".join(problem.format_message().split()).rstrip(".")
    context = getattr(problem, "ctx", None)
    quoted = text.split("'")
    near = None
    if "No such command" in text and len(quoted) > 1:
        near = nearest(quoted[1], [c.name for c in app.registered_commands if c.name])
    where = context.command_path if context else "leukoscope"
    return InputError(text, fix=f"Did you mean {near!r}?" if near else f"See: {where} --help")


def _bug(problem: Exception) -> int:
    if os.environ.get("LEUKOSCOPE_DEBUG"):
        raise problem
    show.error(
        f"This is a bug in Leukoscope: {type(problem).__name__}: {problem}",
        "Please report it with the command you ran; LEUKOSCOPE_DEBUG=1 shows where it happened.",
    )
    return 1
