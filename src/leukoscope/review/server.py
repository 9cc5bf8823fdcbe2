"""Running the application: the port first, so that what is wrong with it is said at once."""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable

import uvicorn

from leukoscope.errors import InputError
from leukoscope.review import logs
from leukoscope.review.app import create_app
from leukoscope.review.settings import Settings


def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until ctrl-C; see api.serve."""
    with _listening(settings) as listener:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        app = create_app(settings)
        logs.set_up(settings.log)
        if app.state.welcome:
            say("Nobody has an account yet. Open this link, good for 24 hours:")
            say(app.state.welcome)
        say(f"Leukoscope review: {settings.address} (ctrl-C stops it). "
            "Second reading, not a diagnosis.")  # fmt: skip
        # uvicorn's own log of requests would write addresses with their queries.
        options = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False,
                                 server_header=False, timeout_graceful_shutdown=10,
                                 # Longer than proxies keep idle connections, 60 s: or they would
                                 # send into one that is being closed.
                                 timeout_keep_alive=75)  # fmt: skip
        # What stays for good isn't looked through again and again: that would stop everything.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        uvicorn.Server(options).run(sockets=[listener])


def _listening(settings: Settings) -> socket.socket:
    """The bound socket; InputError where the address can't be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Without its protocol asyncio doesn't turn off Nagle's algorithm: 40 ms an answer.
        listener = socket.socket(family, kind, protocol)
    except OSError:
        raise InputError(
            f"{settings.host!r} is no address of this computer",
            fix="Give --host 127.0.0.1, or 0.0.0.0 for all of its addresses.",
            field="host",
        ) from None
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as problem:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "another program uses it",
            errno.EACCES: "permission is denied",
            errno.EADDRNOTAVAIL: f"{settings.host} is no address of this computer",
        }
        raise InputError(
            f"Can't listen on {settings.host} port {settings.port}: "
            f"{reasons.get(problem.errno or 0, problem.strerror)}",
            fix="Choose another one with --host or --port.",
            field="port",
        ) from None
    return listener
