"""How well three ways of calibrating prediction sets keep their promise, over many random splits.

    python benchmarks/prediction_sets.py BUNDLE cells.parquet

BUNDLE gives the features of a frozen backbone (its head is not used). Each split trains a logistic
head on 70 %, calibrates at .90 by validation (15 %) and counts coverage on the test part (15 %); a
second table cuts training and validation to a third, as a small laboratory has them. Images of one
patient or near-duplicates are not kept together here: what is compared is calibration alone.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from common import machine, markdown
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leukoscope.bundle.inference import Answers, Reader
from leukoscope.data import index as indexes
from leukoscope.evaluate.calibration import (
    fit_conformal,
    fit_temperature,
    prediction_sets,
    softmax,
)
from leukoscope.evaluate.intervals import mean_sd
from leukoscope.progress import track

COVERAGE, SPLITS, FOLDS = 0.9, 40, 5


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--splits", type=int, default=SPLITS)
    args = parser.parse_args()
    features, labels = read(args.bundle, args.cells)
    print(f"{machine()}\n\n{len(labels)} images, {labels.max() + 1} classes, nominal {COVERAGE}, "
          f"{args.splits} random splits (seeds 0 to {args.splits - 1})")  # fmt: skip
    for share in (1.0, 1 / 3):
        found = [one(features, labels, share, seed) for seed in range(args.splits)]
        print(f"\nTraining and validation: {share:.0%} of theirs\n\n{summary(found)}")


def read(bundle: Path, cells: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and class numbers (n,) of the index's images."""
    index, reader = indexes.load(cells), Reader.load(bundle)
    paths = [index.path(image) for image in index.frame["image"]]
    found = []
    for path, answer in track(reader.read(paths), "Features", total=len(paths)):
        assert isinstance(answer, Answers), path
        found.append(answer.features)
    return np.concatenate(found), index.frame["label"].astype("category").cat.codes.to_numpy(int)


def one(features: np.ndarray, labels: np.ndarray, share: float, seed: int) -> dict[str, list]:
    """[coverage, mean size of the sets, spread of coverage over classes] of each way."""
    rows = np.arange(len(labels))
    rest, test = train_test_split(rows, test_size=0.15, stratify=labels, random_state=seed)
    train, validation = train_test_split(
        rest, train_size=share * 0.7 / 0.85 - 1e-9, test_size=share * 0.15 / 0.85,
        stratify=labels[rest], random_state=seed,
    )  # fmt: skip
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
    fitted = head.fit(features[train], labels[train])
    held, seen = (fitted.decision_function(features[part]) for part in (validation, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = cross_val_predict(
            head, features[train], labels[train], cv=FOLDS, method="decision_function"
        )
    temperature = fit_temperature(held, labels[validation])
    held, folds, seen = (softmax(logits, temperature) for logits in (held, folds, seen))
    both, known = np.concatenate([held, folds]), labels[np.concatenate([validation, train])]
    return {
        "rank rounded up (the usual rule)": judged(
            rounded_up(held, labels[validation]), seen, labels[test]
        ),
        "interpolated": judged(fit_conformal(held, labels[validation], COVERAGE), seen,
                               labels[test]),
        "interpolated, training images out of fold too": judged(
            fit_conformal(both, known, COVERAGE), seen, labels[test]
        ),
    }  # fmt: skip


def rounded_up(probs: np.ndarray, labels: np.ndarray) -> list[float]:
    """The thresholds (k,) of the usual rule, which promises at least the coverage."""
    own = [np.sort(1 - probs[labels == c, c]) for c in range(probs.shape[1])]
    ranks = [int(np.ceil((len(s) + 1) * COVERAGE - 1e-9)) for s in own]
    return [float(s[r - 1]) if r <= len(s) else 1.0 for s, r in zip(own, ranks, strict=True)]


def judged(thresholds: list[float], probs: np.ndarray, labels: np.ndarray) -> list[float]:
    """[coverage, mean size, spread of coverage over the classes] on images of the test part."""
    sets = prediction_sets(probs, thresholds)
    held = sets[np.arange(len(labels)), labels]
    by_class = [held[labels == c].mean() for c in np.unique(labels)]
    return [float(held.mean()), float(sets.sum(axis=1).mean()), float(np.std(by_class))]


def summary(found: list[dict[str, list]]) -> str:
    """A row a way: means and standard deviations over the splits."""
    rows = []
    for name in found[0]:
        coverage, size, spread = zip(*(each[name] for each in found), strict=True)
        near = np.mean(np.abs(np.array(coverage) - COVERAGE) <= 0.02)
        mean, sd = mean_sd(coverage)["mean"], mean_sd(coverage)["sd"]
        rows.append((name, f"{mean:.3f} ± {sd:.3f}", f"{near:.0%}",
                     f"{np.mean(size):.2f} ± {np.std(size, ddof=1):.2f}",
                     f"{np.mean(spread):.3f}"))  # fmt: skip
    head = ("thresholds", "coverage", "within 2 points", "size of a set", "sd over classes")
    return markdown(head, rows)


if __name__ == "__main__":
    main()
