"""A served application with people, for tests of the API: what a program or a browser sends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from store import PASSWORD, person

from leukoscope.review import accounts, work
from leukoscope.review.api import PREFIX
from leukoscope.review.app import create_app
from leukoscope.review.settings import Settings

ROLES = {"ada": "administrator", "anna": "reviewer", "boris": "reviewer", "vera": "viewer"}


@dataclass(frozen=True)
class Served:
    """A running application; `anna` and `boris` review, `vera` looks on, `ada` administers."""

    app: FastAPI
    anonymous: TestClient

    def browser(self, name: str) -> TestClient:
        """A client with that person's session and its cross-site token."""
        client = TestClient(self.app, base_url="http://testserver")
        answer = client.post(f"{PREFIX}/session", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        return client

    def program(self, name: str, *scopes: str) -> TestClient:
        """A client with an API token of that person's."""
        with self.app.state.database.begin() as session:
            by = next(u for u in accounts.users(session) if u.name == name)
            token = accounts.make_token(session, by, "test", list(scopes))
        return TestClient(self.app, headers={"Authorization": f"Bearer {token}"})


@contextmanager
def serving(bundle: Path, url: str, folder: Path, **more: Any) -> Iterator[Served]:
    """The application with its worker running."""
    app = create_app(Settings(bundle=bundle, database=url, folder=folder, **more))
    with pytest.MonkeyPatch.context() as patch, TestClient(app) as anonymous:
        patch.setattr(work, "MOMENT", 0.01)
        yield Served(app, anonymous)


@pytest.fixture
def served(small_bundle: Path, database_url: str, tmp_path: Path) -> Iterator[Served]:
    """The application with people, on each kind of database."""
    with serving(small_bundle, database_url, tmp_path / "served") as made:
        ada = person(made.app.state.database, "ada", "administrator", None)
        for name, role in list(ROLES.items())[1:]:
            person(made.app.state.database, name, role, ada)
        yield made


def new_case(client: TestClient, pseudonym: str = "P-1") -> str:
    """The id of a new case."""
    answer = client.post(f"{PREFIX}/cases", json={"pseudonym": pseudonym})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def send(client: TestClient, case: str, name: str, data: bytes, kind: str = "auto") -> Any:
    """Upload a file in one piece; the finished upload."""
    given = {"name": name, "size": len(data), "kind": kind}
    upload = client.post(f"{PREFIX}/cases/{case}/uploads", json=given).json()
    path = f"{PREFIX}/uploads/{upload['id']}"
    assert client.put(path, params={"offset": 0}, content=data).status_code == 200
    answer = client.post(f"{path}/finish")
    assert answer.status_code == 200, answer.text
    return answer.json()


def settled(client: TestClient, case: str, seconds: float = 20) -> list[Any]:
    """The cells of a case once no job is left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        jobs = client.get(f"{PREFIX}/cases/{case}/jobs").json()["jobs"]
        if all(job["state"] in {"done", "failed"} for job in jobs):
            assert not [job for job in jobs if job["state"] == "failed"], jobs
            return list(client.get(f"{PREFIX}/cases/{case}/cells").json()["cells"])
        time.sleep(0.05)
    raise AssertionError(f"jobs of case {case} take more than {seconds} s: {jobs}")


def uploads(client: TestClient, case: str) -> dict[str, Any]:
    """The uploads of a case by name."""
    found = client.get(f"{PREFIX}/cases/{case}/uploads").json()["uploads"]
    return {upload["name"]: upload for upload in found}
