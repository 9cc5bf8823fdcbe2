"""Do 95 % intervals hold the truth 95 % of the time when a patient's images resemble each other?

Simulated patients (no real data): each has an own difficulty, shared by its images, so that images
of one patient are right or wrong together. Prints how often the interval by patient and the naive
one by image hold the metric of the whole simulated population.

    python benchmarks/interval_coverage.py [--patients 40] [--simulations 400]
"""

from __future__ import annotations

import argparse

import numpy as np

from leukoscope.evaluate.intervals import bootstrap
from leukoscope.evaluate.predictions import Predictions
from leukoscope.evaluate.resampling import measured

METRICS = ("accuracy", "macro_f1", "per_class.a.recall", "per_class.a.precision")
CLASSES = ("a", "b", "c")


def simulate(patients: int, generator: np.random.Generator) -> tuple[Predictions, np.ndarray]:
    """Predictions for 10 to 40 images of each patient, and the patient of each image (n,).

    The logit of being right varies between patients with standard deviation 1 around 1.5; a
    patient favours one class.
    """
    groups = np.repeat(np.arange(patients), generator.integers(10, 41, patients))
    difficulty = generator.normal(1.5, 1.0, patients)[groups]
    favourite = generator.integers(0, len(CLASSES), patients)[groups]
    own = generator.random(len(groups)) < 0.5
    labels = np.where(own, favourite, generator.integers(0, len(CLASSES), len(groups)))
    right = generator.random(len(groups)) < 1 / (1 + np.exp(-difficulty))
    other = (labels + generator.integers(1, len(CLASSES), len(groups))) % len(CLASSES)
    return Predictions(labels, np.where(right, labels, other), None, CLASSES), groups


def coverage(
    patients: int = 40, simulations: int = 400, resamples: int = 1_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{metric: {by_patient, by_image}}: the share of 95 % intervals that hold the truth."""
    generator = np.random.default_rng(seed)
    truth = measured(simulate(30_000, generator)[0], METRICS)
    hits = {metric: {"by_patient": 0, "by_image": 0} for metric in METRICS}
    for index in range(simulations):
        predictions, groups = simulate(patients, generator)
        for kind, own in (("by_patient", groups), ("by_image", None)):
            found = bootstrap(predictions, own, metrics=METRICS, resamples=resamples, seed=index)
            for metric, interval in found.items():
                value = truth[metric]
                if interval is not None and value is not None:
                    hits[metric][kind] += interval[0] <= value <= interval[1]
    return {
        metric: {kind: count / simulations for kind, count in row.items()}
        for metric, row in hits.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Coverage of 95 % intervals in a simulation.")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--simulations", type=int, default=400)
    arguments = parser.parse_args()
    table = coverage(arguments.patients, arguments.simulations)
    print(f"{arguments.simulations} simulations of {arguments.patients} patients, nominal 95 %")
    print(f"{'metric':<24}{'by patient':>12}{'by image':>12}")
    for metric, row in table.items():
        print(f"{metric:<24}{row['by_patient']:>12.1%}{row['by_image']:>12.1%}")


if __name__ == "__main__":
    main()
