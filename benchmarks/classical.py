"""The classical stage of `hybrid-stacking` at the size of its paper: time, memory, accuracy.

    python benchmarks/classical.py [--rows 81214] [--folder DIR] [-o docs/measured/FILE.md]

The features are synthetic: three networks' worth (1,280 + 2,048 + 4,096 columns) of normal noise
whose variances fall as rank^-1.3 in a basis of their own, so that 95 % of the variance takes about
as large a share of the columns as in MobileNetV2's features of PBC (283 to 362 of 1,280); five
classes differ in the mean of the first 200 directions. They lie on disk, memory-mapped, and all
rows train; 4,000 further ones are scored. The stage runs in a process of its own, so that its peak
of memory (resident pages of the mapped features included) is nobody else's.
"""

from __future__ import annotations

import argparse
import functools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from common import machine, markdown

from leukoscope.models import classical
from leukoscope.recipes.schema import resolve

WIDTHS = (1280, 2048, 4096)
CLASSES, SEPARATION, DECAY, INFORMATIVE = 5, 0.15, 1.3, 200
SCORED = 4000
CHUNK = 2048  # rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=81_214)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the features lie; a temporary folder")
    parser.add_argument("--stage", action="store_true", help="run on features that lie there")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    if given.stage:
        print(stage(given.folder, given.seed))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        make(folder, given.rows, given.seed)
        command = [sys.executable, __file__, "--stage", "--folder", str(folder)]
        said = subprocess.run(
            [*command, "--seed", str(given.seed)], check=True, text=True, stdout=subprocess.PIPE
        ).stdout
    text = f"{' '.join(sys.argv)}\n\n{said}"
    print(text)
    if given.output:
        with given.output.open("a", encoding="utf-8") as handle:
            handle.write(f"\n{text}")


def make(folder: Path, rows: int, seed: int) -> None:
    """Write features.npy (rows + SCORED, 7,424) float32 and labels.npy there."""
    rng = np.random.default_rng([seed, 1])
    labels = rng.integers(CLASSES, size=rows + SCORED)
    np.save(folder / "labels.npy", labels)
    shape = (len(labels), sum(WIDTHS))
    out = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, shape)
    start = 0
    for width in WIDTHS:
        means = np.zeros((CLASSES, width), np.float32)
        means[:, :INFORMATIVE] = SEPARATION * rng.standard_normal((CLASSES, INFORMATIVE))
        scales = (np.arange(1, width + 1) ** (-DECAY / 2)).astype(np.float32)
        signs, order = rng.choice([-1, 1], width).astype(np.float32), rng.permutation(width)
        for row in range(0, len(labels), CHUNK):
            label = labels[row : row + CHUNK]
            noise = rng.standard_normal((len(label), width), dtype=np.float32)
            hidden = (noise + means[label]) * scales * signs
            # A random-looking orthogonal basis at the price of a Fourier transform.
            block = scipy.fft.dct(hidden, norm="ortho", axis=1)[:, order]
            out[row : row + CHUNK, start : start + width] = block
        start += width
    out.flush()


def stage(folder: Path, seed: int) -> str:
    """Fit on all but the last SCORED rows and score those; a Markdown report."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    training, scored = features[:-SCORED], features[-SCORED:]
    settings = resolve("hybrid-stacking").classical
    spent: dict[str, list[float]] = {}
    watch(spent)
    began, used = time.perf_counter(), time.process_time()
    truth = labels[:-SCORED]
    splits = classical.splits_within(truth, range(len(truth)), settings, seed)
    model = classical.fit(training, truth, splits, WIDTHS, settings, seed)
    took, used = time.perf_counter() - began, time.process_time() - used
    with timed(spent, "scoring 4,000 rows"):
        right = classical.probabilities(model, scored).argmax(axis=1) == labels[-SCORED:]
    # Kilobytes on Linux, resident pages of the mapped file among them.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows: list[list[Any]] = [[n, len(s), f"{sum(s):.0f}"] for n, s in spent.items()]
    rows += [["**fit, all**", 1, f"**{took:.0f}**"], ["its processor time", "", f"{used:.0f}"]]
    notes = classical.caveats(splits, settings, len(truth), list("abcde"))
    return (
        f"{machine('scikit-learn', 'scikit-learn-intelex', 'numpy')}; seed {seed}; synthetic "
        f"features, {len(training):,} x {features.shape[1]:,}, {components(model)} components\n\n"
        f"{markdown(['part', 'times', 'seconds'], rows)}\n\n"
        f"Peak memory {peak:.2f} GiB; accuracy on {SCORED:,} further rows {right.mean():.4f} "
        f"(chance {1 / CLASSES:.2f}). Notes of the run: {'; '.join(notes) or 'none'}.\n"
    )


def components(model: Any) -> int:
    """How many columns the classifier sees."""
    return int(model[-1].n_features_in_)


def watch(spent: dict[str, list[float]]) -> None:
    """Time the stage's parts where they are made, from the outside."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    from leukoscope.models.ecoc import OutputCodeSVM
    from leukoscope.models.forest import Forest

    for kind, method, name in (
        (PCA, "fit_transform", "principal components of a network"),
        (OutputCodeSVM, "fit", "output code of support vector machines, fit"),
        (OutputCodeSVM, "decision_function", "output code, held-out scores"),
        (Forest, "fit", "forest, fit"),
        (Forest, "predict_proba", "forest, held-out probabilities"),
        (LogisticRegression, "fit", "stacker"),
    ):
        setattr(kind, method, recorded(getattr(kind, method), spent, name))


def recorded(
    function: Callable[..., Any], spent: dict[str, list[float]], name: str
) -> Callable[..., Any]:
    """The function, noting its seconds."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **more: Any) -> Any:
        with timed(spent, name):
            return function(*arguments, **more)

    return wrapper


@contextmanager
def timed(spent: dict[str, list[float]], name: str) -> Iterator[None]:
    """Note the block's seconds under the name; on stderr too, since the whole takes long."""
    began = time.perf_counter()
    yield
    spent.setdefault(name, []).append(time.perf_counter() - began)
    print(f"{name}: {spent[name][-1]:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
