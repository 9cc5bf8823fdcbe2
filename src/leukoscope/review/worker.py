"""The thread that does the jobs, one after the other."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import select, update
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from leukoscope.bundle.inference import Reader
from leukoscope.errors import LeukoscopeError
from leukoscope.review import audit, jobs, work
from leukoscope.review.blobs import Blobs
from leukoscope.review.database import Database
from leukoscope.review.metrics import Metrics
from leukoscope.review.schema import Case, Job, Upload, User
from leukoscope.review.settings import Settings

log = logging.getLogger("leukoscope.review")
ATTEMPTS = 5  # that get nowhere, since something other than the server's own stop interrupts them
PATIENCE = 5.0  # seconds until the table is looked at without being asked
WORK = {"intake": work.take_in, "reread": work.read_again}


TURN = 2.0  # seconds of work for one person while others wait, and what is begun after them


class Stopped(Exception):  # noqa: N818 - no error: the job waits
    """The server stops, or it is somebody else's turn; the job goes on later."""


class Worker:
    """One thread (final). What was interrupted is taken up at the next start."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        reader: Reader,
        model_id: int,
        blobs: Blobs,
        metrics: Metrics,
    ) -> None:
        self.database = database
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.tools = work.Tools(
            settings, database, reader, model_id, blobs, self._check, self._stopping.wait,
            self._turn_over, self._pass_on, metrics,
        )  # fmt: skip
        self._served: dict[int, float] = {}  # by user, when their last turn ended
        self._began = 0.0

    def start(self) -> None:
        """Take up what was interrupted, then wait for more."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="leukoscope-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step at hand."""
        self._stopping.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, unless it was told to stop."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        """There is something to do."""
        self._asked.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._asked.clear()
            try:
                # Else a server that ends within its first second would have got nowhere with a file
                # that it never looked at, and that would count against the file.
                self.tools.blobs.decoder.await_first()
                self._work()
            except Exception:
                # Most likely the database is away; and no job may wait for ever for a dead worker.
                self.tools.metrics.restarts.inc()
                log.exception("the worker was interrupted; it tries again")
            self._asked.wait(PATIENCE)

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self.database.begin() as session:
                job = jobs.begin(session, self._served)
                by = session.get_one(User, job.user_id) if job else None
            if job is None or by is None:
                return
            self._began = time.monotonic()
            self._do(job, by)
            self._served[job.user_id] = time.monotonic()

    def _do(self, job: Job, by: User) -> None:
        if job.arguments["attempts"] > ATTEMPTS:
            log.error("job %s (%s) was interrupted %d times", job.id, job.kind, ATTEMPTS)
            self._give_up(job)
            return
        try:
            WORK[job.kind](self.tools, job, by)
        except Stopped:
            self._finish(job, "waiting")
        except LeukoscopeError as problem:
            self._finish(job, "failed", str(problem))
        except Exception as problem:
            # What the database refuses stays refused; where it is away the job waits for it.
            refused = isinstance(problem, DataError | IntegrityError)
            if isinstance(problem, SQLAlchemyError) and not refused:
                raise
            log.exception("job %s (%s) failed", job.id, job.kind)
            self._finish(job, "failed", work.PROBLEM)
        else:
            self._finish(job, "done")

    def _give_up(self, job: Job) -> None:
        """Do without the file that the server died of, or where it isn't known, the whole job."""
        if "at" not in job.arguments:
            self._finish(job, "failed", work.PROBLEM)
            return
        at = (Upload.id == job.arguments["at"]) & (Upload.state == "received")
        with self.database.begin() as session:
            session.execute(update(Upload).where(at).values(state="failed", error=work.PROBLEM))
            jobs.got_on(session, job, 1)
            case = session.get(Case, job.case_id)
            audit.record(session, "server", "failed upload", case, upload=job.arguments["at"])

    def _finish(self, job: Job, state: str, error: str = "") -> None:
        with self.database.begin() as session:
            present = session.get_one(Job, job.id)
            if job.kind == "intake":
                left = (Upload.case_id == job.case_id) & (Upload.state == "received")
                if state == "failed":
                    # Or they would keep the case from being signed for ever.
                    session.execute(update(Upload).where(left).values(state=state, error=error))
                elif session.scalar(select(Upload.id).where(left).limit(1)):
                    state = "waiting"  # one more file came in this very moment
            present.state, present.error, present.arguments = state, error, {}
            if state == "failed":
                case = session.get(Case, job.case_id)
                audit.record(session, "server", "failed job", case, kind=job.kind, error=error)

    def _turn_over(self, job: Job) -> bool:
        if time.monotonic() - self._began < TURN:
            return False
        with self.database.read() as session:
            if jobs.others_wait(session, job.user_id):
                return True
        self._began = time.monotonic()
        return False

    def _pass_on(self, job: Job) -> None:
        if self._turn_over(job):
            raise Stopped

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped
