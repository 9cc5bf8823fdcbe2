"""How often `auto` tells fields of view from pictures of single cells.

    python benchmarks/kinds.py [DATA]

DATA is the folder of real images (default ../shared/data). Every second image is of the half on
which the rule's thresholds were chosen, the others confirm it. Squares are cut from each field at
random places (seed 0); crops are those of `leukoscope crop`, with its own margin and a wide one.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from leukoscope.data import synthetic
from leukoscope.imaging.cells import crop, find_cells
from leukoscope.imaging.read import IMAGE_SUFFIXES, read_image
from leukoscope.review.files import shows

Shown = tuple[str, str, np.ndarray]  # kind, source, image


def fields(folder: Path, sides: tuple[int, ...], rng: np.random.Generator) -> Iterator[list[Shown]]:
    """Each field of a folder, squares of it and, of BCCD, crops of its cells."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        image = read_image(path)
        name = f"{folder.parent.name}/{folder.name}"
        made: list[Shown] = [("field", name, image)]
        for side in (s for s in sides if s <= min(image.shape[:2])):
            y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
            square = image[y : y + side, x : x + side]
            made.append(("field", f"{name}, squares of {side} px", square))
        if folder.parent.name == "bccd":
            for margin in (0.1, 0.5):
                cut = crop(image, find_cells(image), margin)
                made += [("cell", f"crops of bccd, margin {margin}", one) for one in cut]
        yield made


def everything(data: Path, scratch: Path) -> Iterator[list[Shown]]:
    """All images, those that belong to one file together."""
    rng = np.random.default_rng(0)
    yield from fields(data / "bccd" / "images", (480, 400, 320, 240), rng)
    for name in ("chula", "warty-pig"):
        yield from fields(data / "novelty" / name, (320,), rng)
    for path in sorted((data / "pbc-mini").rglob("*.jpg"))[::4]:
        yield [("cell", f"pbc-mini, {path.parent.name}", read_image(path))]
    synthetic.make(scratch, images=100, size=224, patients=4, seed=0, leaks=False)
    for path in sorted((scratch / "images").rglob("*.jpg")):
        yield [("cell", "synthetic", read_image(path))]
    yield from fields(scratch / "fields", (480, 224), rng)


def main(data: Path) -> None:
    """Print the share that is told right, by source and half."""
    right: dict[tuple[str, str], tuple[list[bool], list[bool]]] = defaultdict(lambda: ([], []))
    with tempfile.TemporaryDirectory() as scratch:
        for place, group in enumerate(everything(data, Path(scratch) / "synthetic")):
            for kind, source, image in group:
                said = shows(image.shape[1], image.shape[0], find_cells(image))
                right[kind, source.split("synthetic/")[-1]][place % 2].append(said == kind)
    print("| what | taken for | n, chosen on | right | n, confirmed on | right |")
    print("|---|---|---|---|---|---|")
    for (kind, source), halves in sorted(right.items()):
        cells = [f"{len(h)} | {100 * sum(h) / len(h):.0f} %" if h else "0 | -" for h in halves]
        print(f"| {source} | {kind} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
