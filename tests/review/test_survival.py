"""The server is killed while people work: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

from pathlib import Path

import postgres
from survival import survive, working


def test_sqlite_survives_kills(tmp_path: Path) -> None:
    with working(tmp_path, f"sqlite:///{tmp_path / 'review.sqlite'}", seed=1) as lab:
        found = survive(lab, kills=6, seed=1)
    assert found["server"] >= 6


def test_postgresql_survives_kills_of_the_server_and_its_own(tmp_path: Path) -> None:
    with (
        postgres.running(postgres.installed(), postgres.CAREFUL) as server,
        working(tmp_path, server.url(server.fresh()), seed=2) as lab,
    ):
        found = survive(lab, kills=6, seed=2, server=server, database_kills=1)
    assert found["server"] >= 6 and found["database"] == 1
