"""How well ways of calibrating keep their promise, over many random splits.

    python benchmarks/prediction_sets.py BUNDLE cells.parquet

BUNDLE gives the features of a frozen backbone (its head is not used). Each split trains a logistic
head on 70 %, calibrates by validation (15 %) and counts coverage and calibration error on the test
part (15 %); further tables cut training and validation to a third, as a small laboratory has them.
Images of one patient or near-duplicates are not kept together here: what is compared is calibration
alone.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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
    reliability,
    softmax,
)
from leukoscope.evaluate.intervals import mean_sd
from leukoscope.progress import track

COVERAGES, SPLITS, FOLDS = (0.9, 0.95), 40, 5


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--splits", type=int, default=SPLITS)
    args = parser.parse_args()
    features, labels = read(args.bundle, args.cells)
    print(f"{machine()}\n\n{len(labels)} images, {labels.max() + 1} classes, "
          f"{args.splits} random splits (seeds 0 to {args.splits - 1})")  # fmt: skip
    for share in (1.0, 1 / 3):
        splits = [Split.drawn(features, labels, share, seed) for seed in range(args.splits)]
        print(f"\n## Training and validation: {share:.0%} of theirs\n\n{errors(splits)}")
        for coverage in COVERAGES:
            print(f"\nSets of nominal coverage {coverage}\n\n{summary(splits, coverage)}")


def read(bundle: Path, cells: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and class numbers (n,) of the index's images."""
    index, reader = indexes.load(cells), Reader.load(bundle)
    paths = [index.path(image) for image in index.frame["image"]]
    found = []
    for path, answer in track(reader.read(paths), "Features", total=len(paths)):
        assert isinstance(answer, Answers), path
        found.append(answer.features)
    return np.concatenate(found), index.frame["label"].astype("category").cat.codes.to_numpy(int)


@dataclass(frozen=True)
class Split:
    """Logits and labels of validation, of training images out of fold, and of the test part."""

    held: tuple[np.ndarray, np.ndarray]
    folds: tuple[np.ndarray, np.ndarray]
    seen: tuple[np.ndarray, np.ndarray]

    @classmethod
    def drawn(cls, features: np.ndarray, labels: np.ndarray, share: float, seed: int) -> Split:
        """A random split and a head trained on its training part."""
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
        return cls((held, labels[validation]), (folds, labels[train]), (seen, labels[test]))

    @property
    def both(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation and training images out of fold."""
        logits, labels = zip(self.held, self.folds, strict=True)
        return np.concatenate(logits), np.concatenate(labels)


def errors(splits: Sequence[Split]) -> str:
    """Expected calibration error of the test part under each way of fitting the temperature."""
    rows = []
    for name, part in (("validation", "held"), ("validation and out of fold", "both")):
        found, even = [], []
        for split in splits:
            logits, labels = split.seen
            probs = softmax(logits, fit_temperature(*getattr(split, part)))
            found.append(error(probs, labels))
            even.append(chance_error(probs))
        rows.append((name, f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}",
                     f"{np.mean(np.array(found) <= 0.03):.0%}",
                     f"{np.mean(even):.3f}"))  # fmt: skip
    head = ("temperature of", "ECE", "at most .03", "ECE of perfect probabilities, by chance")
    return markdown(head, rows)


def error(probs: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of probabilities (n, k) and labels (n,)."""
    rows = [row for row in reliability(probs, labels) if row["n"]]
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(labels)


def chance_error(probs: np.ndarray, draws: int = 20) -> float:
    """Mean error where labels are drawn from the probabilities themselves: what n images leave."""
    rng = np.random.default_rng(0)
    found = [error(probs, rng.multinomial(1, probs).argmax(axis=1)) for _ in range(draws)]
    return float(np.mean(found))


def rounded_up(probs: np.ndarray, labels: np.ndarray, coverage: float) -> list[float]:
    """The thresholds (k,) of the usual rule, which promises at least the coverage."""
    own = [np.sort(1 - probs[labels == c, c]) for c in range(probs.shape[1])]
    ranks = [int(np.ceil((len(s) + 1) * coverage - 1e-9)) for s in own]
    return [float(s[r - 1]) if r <= len(s) else 1.0 for s, r in zip(own, ranks, strict=True)]


WAYS = {
    "rank rounded up (the usual rule)": (rounded_up, "held"),
    "interpolated": (fit_conformal, "held"),
    "interpolated, training images out of fold too": (fit_conformal, "both"),
}


def judged(thresholds: list[float], probs: np.ndarray, labels: np.ndarray) -> list[float]:
    """[coverage, mean size, spread of coverage over the classes] on images of the test part."""
    sets = prediction_sets(probs, thresholds)
    held = sets[np.arange(len(labels)), labels]
    by_class = [held[labels == c].mean() for c in np.unique(labels)]
    return [float(held.mean()), float(sets.sum(axis=1).mean()), float(np.std(by_class))]


def summary(splits: Sequence[Split], coverage: float) -> str:
    """A row a way: means and standard deviations over the splits."""
    rows = []
    for name, (thresholds, part) in WAYS.items():
        found = []
        for split in splits:
            temperature = fit_temperature(*split.held)
            logits, labels = getattr(split, part)
            limits = thresholds(softmax(logits, temperature), labels, coverage)
            found.append(judged(limits, softmax(split.seen[0], temperature), split.seen[1]))
        covered, size, spread = np.array(found).T
        near = np.mean(np.abs(covered - coverage) <= 0.02)
        mean, sd = mean_sd(list(covered))["mean"], mean_sd(list(covered))["sd"]
        rows.append((name, f"{mean:.3f} ± {sd:.3f}", f"{near:.0%}",
                     f"{np.mean(size):.2f} ± {np.std(size, ddof=1):.2f}",
                     f"{np.mean(spread):.3f}"))  # fmt: skip
    head = ("thresholds", "coverage", "within 2 points", "size of a set", "sd over classes")
    return markdown(head, rows)


if __name__ == "__main__":
    main()
