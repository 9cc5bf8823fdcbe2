"""schemathesis over the whole API: no 5xx, no answer that the documentation doesn't know."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import bundle
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from serving import new_case, send, serving, settled
from store import person

from leukoscope.review.api import PREFIX

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # schemathesis' own, of libraries that it uses
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.core.failures import FailureGroup
    from schemathesis.schemas import APIOperation
    from schemathesis.specs.openapi.checks import positive_data_acceptance

# A schema can't say that texts must be printable, or that names of classes are the model's.
BEYOND = [positive_data_acceptance]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def api_schema(
    request: pytest.FixtureRequest, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object]:
    """The served API's own documentation, with a case of one cell behind it."""
    folder = tmp_path_factory.mktemp("schema")
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.fresh())
    else:
        url = f"sqlite:///{folder / 'new.db'}"
    with serving(small_bundle, url, folder / "f") as made:
        person(made.app.state.database, "ada", "administrator", None)
        program = made.program("ada", "read", "write", "admin")
        case = new_case(program)
        send(program, case, "a.png", bundle.cell())
        settled(program, case)
        found = schemathesis.openapi.from_asgi(f"{PREFIX}/openapi.json", made.app)
        found.config.update(headers={"Authorization": program.headers["Authorization"]})
        yield found


def test_every_answer_is_documented(api_schema: schemathesis.BaseSchema) -> None:
    """Also of what a program sends that doesn't fit; of each operation five requests of each."""
    checked, problems = 0, []
    for found in api_schema.get_all_operations():
        checked += 1
        for mode in GenerationMode:
            try:
                _check(found.ok(), mode)
            except FailureGroup as problem:
                problems += [f"{found.ok().label}: {one}" for one in problem.exceptions]
    assert checked > 40
    assert not problems, "\n".join(problems)


def _check(operation: APIOperation, mode: GenerationMode) -> None:
    try:
        strategy = operation.as_strategy(generation_mode=mode)

        @given(case=strategy)
        @settings(
            max_examples=5, deadline=None, derandomize=True, database=None,
            phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=BEYOND)

        check()
    except Unsatisfiable:  # nothing about it can be wrong
        assert mode is GenerationMode.NEGATIVE
