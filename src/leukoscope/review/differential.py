"""The differential count and the agreement of two readers, as plain numbers.

Shares are of leukocytes: red precursors, platelets, artefacts and what nobody can tell are counted
beside it, with no share. Intervals are Wilson's, 95 %. The formulas stand here, equal to
those of `evaluate` (a test compares), because scipy would take longer to load than a case to open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from leukoscope.review.vocabulary import is_leukocyte

Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Share:
    """Cells of one class; share of all leukocytes in [0, 1] with its interval.

    None where the class isn't one of leukocytes, or no leukocyte was counted.
    """

    name: str
    count: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How often model and reviewer say the same of a cell; kappa is Cohen's, unweighted.

    Undefined values are None; `reason` says why kappa is.
    """

    n: int
    agreed: int
    share: float | None
    low: float | None
    high: float | None
    kappa: float | None
    reason: str = ""


def count(labels: Sequence[str], classes: Sequence[str]) -> list[Share]:
    """Shares of all `classes` in their order (0 too), then of other labels that occur, by name."""
    counted = Counter(labels)
    others = sorted(set(counted) - set(classes))
    leukocytes = sum(n for name, n in counted.items() if is_leukocyte(name))
    return [
        Share(name, counted[name], *_wilson(counted[name], leukocytes if is_leukocyte(name) else 0))
        for name in [*classes, *others]
    ]


def agreement(predicted: Sequence[str], labelled: Sequence[str]) -> Agreement:
    """Agreement over cells; both sequences of the same length, cell by cell."""
    n = len(predicted)
    agreed = sum(a == b for a, b in zip(predicted, labelled, strict=True))
    if not n:
        return Agreement(0, 0, None, None, None, None, "there are no cells")
    rows, columns = Counter(predicted), Counter(labelled)
    chance = sum(times * columns[name] for name, times in rows.items())
    share, low, high = _wilson(agreed, n)
    if chance == n * n:
        return Agreement(n, agreed, share, low, high, None, "both readers name one class only")
    kappa = (n * agreed - chance) / (n * n - chance)
    return Agreement(n, agreed, share, low, high, kappa)


def _wilson(successes: int, n: int) -> tuple[float, float, float] | tuple[None, None, None]:
    """The proportion and its Wilson score interval (Wilson 1927); None each where n is 0."""
    if not n:
        return None, None, None
    p, spread = successes / n, Z * Z / n
    centre = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    return p, max(0.0, centre - half), min(1.0, centre + half)
