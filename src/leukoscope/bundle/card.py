"""The model card of a bundle: what it is for, how good it is, where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from leukoscope.bundle.contract import Contract
from leukoscope.errors import InputError

SHOWN = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "macro_specificity",
    "roc_auc_ovr",
    "cohen_kappa",
    "log_loss",
    "ece",
)


def render(contract: Contract, metrics: Mapping[str, Any]) -> str:
    """Markdown with the YAML head that model hubs read. metrics: the run's metrics.json.

    Raises InputError where the metrics lack what the card states.
    """
    source = resources.files("leukoscope.bundle").joinpath("templates/card.md").read_text("utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )  # Markdown, not HTML
    environment.filters["cell"] = _cell
    try:
        return environment.from_string(source).render(c=contract, m=metrics, shown=SHOWN)
    except (jinja2.UndefinedError, TypeError, ValueError) as problem:
        raise InputError(
            f"The run's metrics.json is damaged: {problem}",
            fix="Train the run again.",
            field="run",
        ) from None


def _cell(text: object) -> str:
    """Text safe inside a Markdown table: no line breaks, pipes escaped."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
