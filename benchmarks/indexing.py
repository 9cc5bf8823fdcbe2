"""Index and audit: images a second, how the time grows with their number, peak memory.

    python benchmarks/indexing.py [DATA] [--sizes 5000 50000] [--rounds 5] [--large-rounds 1] [-o F]

DATA is a folder of classes with images (default: ../shared/data/pbc-mini). It is indexed and
audited as it is; then in sets of `--sizes` images made from it in a temporary folder: each picture
in as many variants as are needed, turned and mirrored, brighter or darker, shrunk a little and
recoded, so that the larger set also holds more copies of each picture. All sets take turns, each
run in a process of its own; sets larger than 10,000 take part in the first `--large-rounds` rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import machine, markdown

from leukoscope.data import duplicates
from leukoscope.data.audit import audit
from leukoscope.data.index import index
from leukoscope.imaging.read import read_image
from leukoscope.parallel import ahead

LARGE = 10_000
STAGES = ("index", "duplicates", "audit")


def measure(folder: Path, work: Path) -> dict[str, Any]:
    """Seconds of each stage and of the processor, peak memory, and what was found."""
    times = [time.perf_counter()]
    cells = index(folder, work / "cells.parquet")
    times.append(time.perf_counter())
    found = duplicates.find(cells)
    times.append(time.perf_counter())
    audit(cells, found=found)
    times.append(time.perf_counter())
    return {
        "n": len(cells.frame),
        **dict(zip(STAGES, np.diff(times).tolist(), strict=True)),
        "processor": time.process_time(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "groups": len(found.near),
        "images": sum(map(len, found.near)),
    }


def in_a_process(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, __file__, str(folder), "--measure", work]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def variant(image: np.ndarray, number: int, rng: np.random.Generator) -> bytes:
    """The picture turned or mirrored, in other light, at another size, as JPEG."""
    changed = np.rot90(image, number % 4)
    changed = changed[:, ::-1] if number % 8 >= 4 else changed
    changed = cv2.convertScaleAbs(np.ascontiguousarray(changed), alpha=rng.uniform(0.85, 1.1))
    scale = rng.uniform(0.92, 1.0)
    changed = cv2.resize(changed, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(85, 96))]
    return bytes(cv2.imencode(".jpg", changed[:, :, ::-1], quality)[1])


def replicate(data: Path, folder: Path, count: int) -> None:
    """Write `count` variants of the images of `data` into `folder`, in the same classes."""
    sources = sorted(data.rglob("*.jpg"))

    def write(place: int) -> None:
        source = sources[place]
        image = read_image(source)
        target = folder / source.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for number in range(len(range(place, count, len(sources)))):
            rng = np.random.default_rng([place, number])
            name = f"{source.stem}-{number}.jpg"
            (target / name).write_bytes(variant(image, number, rng))

    for _ in ahead(write, range(len(sources))):
        pass


def runs(
    folders: dict[str, Path], sizes: dict[str, int], rounds: int, large: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    for turn in range(rounds):
        for name, folder in folders.items():
            if turn < large or sizes[name] <= LARGE:
                yield name, in_a_process(folder)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, results in found.items():
        seconds = [sum(result[stage] for stage in STAGES) for result in results]
        n, middle = results[0]["n"], statistics.median(seconds)
        each = [1000 * statistics.median(r[stage] for r in results) / n for stage in STAGES]
        rows.append(
            [
                name,
                len(results),
                f"{middle:.1f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                f"{n / middle:.0f}",
                *(f"{value:.2f}" for value in each),
                f"{1000 * statistics.median(r['processor'] for r in results) / n:.2f}",
                f"{max(r['peak'] for r in results):.2f}",
                f"{results[0]['images']:,} in {results[0]['groups']:,}",
            ]
        )
    stages = [f"{stage}, ms an image" for stage in STAGES]
    head = ["images", "runs", "median, s", "fastest to slowest, s", "images a second", *stages]
    return markdown([*head, "processor, ms an image", "peak, GiB", "near-duplicates, groups"], rows)


def growth(found: dict[str, list[dict[str, Any]]], names: Sequence[str]) -> str:
    """Times an image in the last of the made sets relative to those in the first."""

    def ratio(stages: Sequence[str]) -> float:
        times = [
            statistics.median(sum(r[stage] for stage in stages) / r["n"] for r in found[name])
            for name in (names[0], names[-1])
        ]
        return times[1] / times[0]

    return (
        f"Time an image, {names[-1]} against {names[0]}: x {ratio(STAGES):.2f}, "
        f"of the processor x {ratio(['processor']):.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "pbc-mini"
    parser.add_argument("data", type=Path, nargs="?", default=shared)
    parser.add_argument("--sizes", type=int, nargs="*", default=[5000, 50000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-rounds", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="also write the page here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.data, given.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = {given.data.name: given.data}
        sizes = {given.data.name: 0}
        for size in given.sizes:
            name = f"{size:,} made"
            folders[name], sizes[name] = Path(temporary) / str(size), size
            replicate(given.data, folders[name], size)
        os.sync()  # what the system still has to write would be charged to whoever runs first
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
        for name, result in runs(folders, sizes, given.rounds, given.large_rounds):
            found[name].append(result)
            print(name, result, file=sys.stderr, flush=True)
    made = list(folders)[1:]
    page = "\n\n".join(
        [
            "# Speed of index and audit",
            f"`python benchmarks/indexing.py --sizes {' '.join(map(str, given.sizes))} "
            f"--rounds {given.rounds} --large-rounds {given.large_rounds}`: {given.data.name} as "
            "it is and variants made from it (turned, mirrored, other light, size and coding). "
            f"{machine('opencv-python-headless', 'numpy', 'scikit-learn', 'pillow')}",
            table(found),
            *([growth(found, made)] if len(made) > 1 else []),
        ]
    )
    print(page, flush=True)
    if given.output:
        given.output.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
