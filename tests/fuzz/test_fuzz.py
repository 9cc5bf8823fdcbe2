"""Whatever a file holds, a reader ends in a value or in one sentence: seeds, the kept corpus, and
damage that hypothesis draws. Coverage-guided fuzzing of the same readers: tests/fuzz/run.py."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import mutate
from readers import CORPUS, READERS, judge
from seeds import SEEDS

from leukoscope.errors import InputError
from leukoscope.files import read_json
from leukoscope.recipes import schema

KEPT = sorted(CORPUS.glob("*/*"))
MEMORY = 200  # MB that no kept input may take, whatever it says of itself
# Of inputs that were found, and what must be said of them since.
SAID = {
    "image/gif-frame-of-4-billion-pixels": "more than the 1,000,000 pixels allowed",
    "recipe/arms-is-no-table": "'arms' is True; allowed: a table an arm",
    "recipe/number-of-5000-digits": "is not TOML",
    "recipe/value-of-3000-characters": "'seed': input should be a valid integer",
    "contract/temperature-that-overflows": "temperature: Input should be greater",
    "contract/spread-that-overflows": "input.std.0: Input should be greater",
    "contract/novelty-never-flags": "novelty.threshold.float: Input should be a finite number",
    "contract/number-of-5000-digits": "is not JSON",
    "contract/layer-name-of-two-lines": "layer 1",
    "index/duration-beyond-python": "'mtime_ns' that can't be read",
    "index/two-million-rows": "unpack to 2,000,000 rows",
    "split/column-name-no-utf-8": "no parquet file",
    "split/date-beyond-python": "'fold' that can't be read",
    "split/one-value-of-200-megabytes": "unpack to 1 rows",
}


@pytest.mark.parametrize("reader", READERS)
def test_seeds_are_sound(reader: str) -> None:
    ends = [judge(reader, data) for data in SEEDS[reader]()]
    assert ends.count("") >= len(ends) / 2
    assert ends[0] == ""


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kept_inputs_end_in_a_sentence(path: Path) -> None:
    judge(path.parent.name, SEEDS[path.parent.name]()[0])  # whatever is imported late
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = judge(path.parent.name, path.read_bytes())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY * 1024
    assert SAID.get(f"{path.parent.name}/{path.name}", "") in said


def test_every_named_input_is_kept() -> None:
    assert {f"{path.parent.name}/{path.name}" for path in KEPT} >= set(SAID)
    assert sum(path.stat().st_size for path in KEPT) < 500_000


@pytest.mark.parametrize("reader", READERS)
@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(draw=st.data())
def test_damaged_files_end_in_a_sentence(reader: str, draw: st.DataObject) -> None:
    seed = draw.draw(st.sampled_from(SEEDS[reader]()))
    judge(reader, mutate(seed, draw.draw(st.randoms(use_true_random=False))))


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_end_in_a_sentence(reader: str, data: bytes) -> None:
    judge(reader, data)


def test_damage_hangs_on_its_seed_alone() -> None:
    for seeds in SEEDS.values():
        first, again = (mutate(seeds()[0], random.Random(7)) for _ in range(2))
        assert first == again


def test_numbers_of_5000_digits_in_settings_and_json(tmp_path: Path) -> None:
    digits = "9" * 5000
    with pytest.raises(InputError, match="seed"):
        schema.resolve("lightweight-cnn", settings=[f"seed={digits}"])
    (tmp_path / "a.json").write_text(digits)
    with pytest.raises(InputError, match="not JSON"):
        read_json(tmp_path / "a.json")


def test_errors_are_one_short_line() -> None:
    said = str(InputError("got a\nb " + "x" * 10**6, fix="Don't."))
    assert "\n" not in said
    assert len(said) < 1100
    assert said.startswith("got a b xxx")
    assert said.endswith("x. Don't.")
