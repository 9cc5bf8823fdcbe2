"""What /metrics says, in Prometheus' text format: counts and times, nobody's name or data.

Labels hold routes as templates, states, kinds and statuses: never what a client sent.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as text_of
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import event, func, select
from sqlalchemy.engine import ExceptionContext
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leukoscope.review import logs
from leukoscope.review.database import Database
from leukoscope.review.schema import Job, Upload

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
JOBS = ("waiting", "running", "done", "failed")
FILES = ("receiving", "received")


class Metrics:
    """The counters of one server (final); what the database knows is asked when they are read."""

    def __init__(self, database: Database, worker_alive: Callable[[], bool]) -> None:
        self.registry = registry = CollectorRegistry()
        self.database = database
        self.requests = Counter(
            "leukoscope_requests", "Requests answered.", ["method", "route", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "leukoscope_request_seconds", "Seconds until the last byte of an answer.",
            ["method", "route"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.under_way = Gauge(
            "leukoscope_requests_under_way", "Requests worked on now.", registry=registry
        )
        self.cells = Counter(
            "leukoscope_cells_read", "Cells that the model has read.", registry=registry
        )
        self.restarts = Counter(
            "leukoscope_worker_restarts", "Times that the worker began anew after a failure.",
            registry=registry,
        )  # fmt: skip
        self.errors = Counter(
            "leukoscope_database_errors", "Errors of the database.", ["kind"], registry=registry
        )
        Gauge(
            "leukoscope_worker_alive", "1 while the worker runs.", registry=registry
        ).set_function(lambda: float(worker_alive()))
        ProcessCollector(registry=registry)
        event.listen(database.engine, "handle_error", self._failed)

    def text(self) -> bytes:
        """All of them in Prometheus' text format; SQLAlchemyError where the database is away."""
        with self.database.read() as session:
            jobs = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
            open_files = Upload.state.in_(FILES)
            query = select(Upload.state, func.count()).where(open_files).group_by(Upload.state)
            files = dict(session.execute(query).all())
        counted = CollectorRegistry()
        counted.register(_Counted("leukoscope_jobs", "Jobs, by state.", JOBS, jobs))
        counted.register(
            _Counted("leukoscope_files", "Files on their way or waiting to be read.", FILES, files)
        )
        return text_of(self.registry) + text_of(counted)

    def _failed(self, context: ExceptionContext) -> None:
        kind = type(context.sqlalchemy_exception or context.original_exception).__name__
        self.errors.labels(kind).inc()


class _Counted:
    """What the database counted, as a collector."""

    def __init__(self, name: str, words: str, states: tuple[str, ...], found: dict) -> None:
        self.family = GaugeMetricFamily(name, words, labels=["state"])
        for state in states:
            self.family.add_metric([state], found.get(state, 0))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The one family."""
        yield self.family


class Observed:
    """Middleware (final), the outermost: counts, times and logs every request and names it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its id is in X-Request-ID."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = secrets.token_hex(8)
        logs.REQUEST.set(name)  # of this request's task and of the threads that work for it
        state = scope.setdefault("state", {})
        status = 500
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = name
            await send(message)

        try:
            with self.metrics.under_way.track_inprogress():
                await self.app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = route_of(scope)
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(method, route).observe(seconds)
            visitor = state.get("visitor")
            facts = {"user": visitor.user.id if visitor else None, "method": method, "route": route,
                     "status": status, "ms": round(1000 * seconds, 1)}  # fmt: skip
            logs.requests.info("request", extra={"facts": facts})


def route_of(scope: Scope) -> str:
    """The template of the route that answered, e.g. /api/v1/cases/{case_id}; never the path."""
    route = getattr(scope.get("route"), "path", None)
    path = scope["path"]
    if route is None:
        return "/static" if path.startswith("/static/") else "none"
    # A router's own prefix isn't in its routes' templates, and holds no parameter.
    before = path.split("/")[: -len(route.split("/")) + 1]
    return "/".join(before) + route
