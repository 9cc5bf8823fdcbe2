"""How long do the intervals of one large test part take?

Simulated predictions (no real data) of 12,184 images, as many as recipe 5 tests, whose patients
are unknown: each image is resampled by itself, the slow case. 10,000 resamples of every metric of
metrics.json and of each class.

    OMP_NUM_THREADS=1 python benchmarks/intervals.py [--images 12184] [--classes 5]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from leukoscope.evaluate.intervals import bootstrap
from leukoscope.evaluate.predictions import Predictions


def simulate(n: int, k: int, seed: int = 0) -> Predictions:
    """n predictions of k classes, right more often than not, with probabilities."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, k, n)
    probs = generator.gamma(0.5, size=(n, k)) + np.eye(k)[labels]
    probs /= probs.sum(axis=1, keepdims=True)
    return Predictions(labels, probs.argmax(axis=1), probs, tuple(f"class {c}" for c in range(k)))


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description="Seconds for 10,000 resamples of every metric.")
    parser.add_argument("--images", type=int, default=12_184)
    parser.add_argument("--classes", type=int, default=5)
    arguments = parser.parse_args()
    predictions = simulate(arguments.images, arguments.classes)
    bootstrap(predictions.take(np.arange(50)), resamples=10)  # imports
    wall, processor = time.perf_counter(), time.process_time()
    found = bootstrap(predictions)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(
        f"{len(found)} metrics of {arguments.images:,} images in {arguments.classes} classes, "
        f"10,000 resamples: {wall:.1f} s, {processor:.1f} s of processor time"
    )


if __name__ == "__main__":
    main()
