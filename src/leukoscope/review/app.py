"""The server: settings in, an ASGI application out."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoneFree
from starlette.exceptions import HTTPException

import leukoscope
from leukoscope.bundle import contract as contracts
from leukoscope.bundle.inference import Reader
from leukoscope.errors import LeukoscopeError
from leukoscope.files import output_folder, sha256_of, sole
from leukoscope.review import accounts, api, cases, intake, logs, pages
from leukoscope.review.api import errors
from leukoscope.review.blobs import Blobs
from leukoscope.review.database import Database
from leukoscope.review.decoding import Decoder
from leukoscope.review.limits import THREADS, Bounded, Gate
from leukoscope.review.metrics import Metrics, Observed
from leukoscope.review.references import References
from leukoscope.review.security import Attempts, Guard, secret_of
from leukoscope.review.settings import Settings
from leukoscope.review.worker import Worker

log = logging.getLogger("leukoscope.review")
HERE = Path(__file__).parent


def create_app(settings: Settings) -> FastAPI:
    """The application: database upgraded, bundle verified, worker ready to start with it.

    Its `state` holds settings, database, reader, model_id, blobs, jobs, references, secret and
    `welcome`: the one-time link of the first start, or None. Raises InputError for a bad bundle,
    database or folder.
    """
    reader = Reader.load(settings.bundle)
    lock = sole(output_folder(settings.folder))
    database = Database(settings.database_url)
    database.upgrade()
    with database.begin() as session:
        model = cases.register_model(
            session,
            reader.contract,
            sha256_of(settings.bundle / contracts.GRAPH),
            sha256_of(settings.bundle / contracts.CONTRACT),
        )
        first = None if accounts.users(session) else accounts.invite(session, "administrator")
    app = FastAPI(
        title="Leukoscope review",
        version=leukoscope.__version__,
        description="Second reading of blood smears, not a diagnosis. Sessions by cookie with "
        "X-CSRF-Token, or Authorization: Bearer with an API token.",
        openapi_url=f"{api.PREFIX}/openapi.json",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    state = app.state
    state.settings, state.database, state.reader, state.model_id = (
        settings, database, reader, model.id,
    )  # fmt: skip
    # As a file, since its second closing does no harm.
    state.lock, state.decoder = os.fdopen(lock), Decoder(settings.limits, reader.contract)
    state.blobs = Blobs(settings.folder, state.decoder)
    with database.read() as session:
        state.blobs.tidy(intake.receiving(session))
    state.metrics = Metrics(database, lambda: state.jobs.alive)
    state.jobs = Worker(settings, database, reader, model.id, state.blobs, state.metrics)
    state.streams = Gate(settings.uploads_at_once, settings.uploads_per_user, "uploads")
    state.references = References(settings.references, reader, state.decoder)
    state.secret = secret_of(settings.folder)
    state.attempts = Attempts(settings.logins_per_minute)
    state.welcome = f"{settings.address}/welcome/{first}" if first else None
    app.include_router(api.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    _answer_errors(app)
    streams = (f"{api.PREFIX}/uploads/",)
    # Outermost: Starlette answers what nobody expected outside of what add_middleware adds.
    gate = Gate(settings.requests_at_once, settings.requests_per_session, "requests")
    bounded = Bounded(app.build_middleware_stack(), gate, streams)
    guard = Guard(bounded, settings.origin, settings.behind_tls, streams)
    app.middleware_stack = Observed(guard, state.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.decoder.warm()
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    app.state.jobs.start()
    try:
        yield
    finally:
        app.state.jobs.stop()
        app.state.decoder.close()
        app.state.database.close()
        app.state.lock.close()


def _answer_errors(app: FastAPI) -> None:
    """One shape for programs, a page for people."""

    @app.exception_handler(LeukoscopeError)
    def known(request: Request, problem: LeukoscopeError) -> Response:
        return _answer(request, errors.status_of(problem), problem, errors.headers_of(problem))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, problem: RequestValidationError) -> Response:
        return _answer(request, 422, errors.of_validation(problem.errors()))

    @app.exception_handler(HTTPException)
    def bare(request: Request, problem: HTTPException) -> Response:
        error = errors.of_status(problem.status_code, str(problem.detail))
        return _answer(request, problem.status_code, error, dict(problem.headers or {}))

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(NoneFree)  # of the connections
    def away(request: Request, problem: Exception) -> Response:
        log.error("the database doesn't answer: %s", logs.words_of(problem))
        error = LeukoscopeError("The database doesn't answer", fix="Try again in a minute.")
        return _answer(request, 503, error)

    @app.exception_handler(Exception)
    def bug(request: Request, _: Exception) -> Response:
        error = LeukoscopeError(
            "This is a bug in Leukoscope", fix="Please report it with the server's log."
        )
        return _answer(request, 500, error)


def _answer(
    request: Request, status: int, problem: LeukoscopeError, headers: Any = None
) -> Response:
    if request.url.path.startswith(("/api/", "/health", "/ready", "/metrics", "/static/")):
        return JSONResponse(problem.as_dict(), status, headers=headers)
    return pages.error_page(request, status, problem.message, problem.fix, headers)
