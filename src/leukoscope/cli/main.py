"""The console script: runs a command and turns what goes wrong into one sentence."""

from __future__ import annotations

import _thread
import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from typer.exceptions import TyperException

    from leukoscope.errors import InputError, LeukoscopeError

STOPPED = "Stopped by ctrl-C; nothing half-written was left behind."
_INTERRUPTED = 130  # what typer makes of ctrl-C


def run() -> NoReturn:
    """Exit codes of DESIGN.md: 0 done, 2 bad input or usage, 3 a leak was found, 1 a bug."""
    usual, sys.unraisablehook = sys.unraisablehook, _again
    try:
        for stream in (sys.stdout, sys.stderr):  # a file name the terminal can't show is no failure
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        code = _command()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    finally:
        sys.unraisablehook = usual
    if code == _INTERRUPTED:
        print(STOPPED, file=sys.stderr)
        code = 2
    sys.exit(code)


def _again(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that fell into a callback, where Python drops exceptions: raised once more, later."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _interrupt).start()
    else:
        sys.__unraisablehook__(lost)


def _interrupt() -> None:
    """Ctrl-C to the main thread, also where it sleeps or waits for a lock."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _command() -> int:
    """Run the command; its exit code."""
    # Imported here, so that ctrl-C during the import, too, is said and not dumped.
    import warnings

    import typer
    from typer.exceptions import TyperException

    from leukoscope.cli.commands import app
    from leukoscope.errors import InputError, LeukoscopeError
    from leukoscope.files import reason

    warnings.simplefilter("ignore")  # libraries' remarks to programmers
    # Threads that spin while they wait made training five times slower beside other programs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return int(app(standalone_mode=False) or 0)
    except LeukoscopeError as problem:
        return _say(problem)
    except MemoryError:
        return _say(InputError("The memory is full", fix="Close other programs, or use less data."))
    except TyperException as problem:
        return _say(_usage(problem))
    except typer.Abort:
        return _INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        # typer's answer to a reader that went away (`| head`), who has what it wanted
        return 0 if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
    except OSError as problem:  # the disk, a permission, a name: the machine's, not a bug
        why, fix = reason(problem)
        return _say(InputError(f"Can't use {problem.filename or 'a file'}: {why}", fix=fix))
    except Exception as problem:  # noqa: BLE001 - the last net: a bug is said, not dumped
        return _bug(problem)


def _say(problem: LeukoscopeError) -> int:
    from leukoscope.cli import show

    show.error(problem.message, problem.fix)
    return problem.exit_code


def _usage(problem: TyperException) -> InputError:
    """A misuse of the command line in our form; typer names the nearest match itself."""
    from leukoscope.errors import InputError

    context = getattr(problem, "ctx", None)
    where = context.command_path if context else "leukoscope"
    text = " ".join(problem.format_message().split()).rstrip(".?")
    return InputError(f"{text}{'?' if 'Did you mean' in text else ''}", fix=f"See: {where} --help")


def _bug(problem: Exception) -> int:
    from leukoscope.cli import show

    if os.environ.get("LEUKOSCOPE_DEBUG"):
        raise problem
    show.error(
        f"This is a bug in Leukoscope: {type(problem).__name__}: {problem}",
        "Please report it with the command you ran; LEUKOSCOPE_DEBUG=1 shows where it happened.",
    )
    return 1
