"""The heat maps of a run's or a bundle's answers, whatever its networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope.bundle.contract import Contract, Network
from leukoscope.bundle.inference import Answers, Reader, answers
from leukoscope.compat import require
from leukoscope.errors import InputError
from leukoscope.explain.gradcam import heat_map, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from leukoscope.models.classifier import Classifier

Maps = Callable[[np.ndarray], tuple[Answers, list[np.ndarray]]]
"""A prepared image (3, h, w) to what the model says of it and, of each network, the heat map (h, w)
in [0, 1] of the class that the whole model predicts."""


@dataclass(frozen=True)
class Opened:
    """A run or a bundle; of a run its networks as torch has them, too."""

    source: Path
    reader: Reader
    classifiers: list[Classifier] | None = None

    @property
    def contract(self) -> Contract:
        return self.reader.contract

    @property
    def names(self) -> list[str]:
        """The networks' names, numbered where one stands there twice."""
        names = [network.architecture for network in self.contract.model.networks]
        if len(set(names)) == len(names):
            return names
        return [f"{place} {name}" for place, name in enumerate(names, start=1)]


def open_source(source: Path) -> Opened:
    """A bundle as it is, or a run through the graph that it would export."""
    if (source / "model.onnx").is_file():
        return Opened(source, Reader.load(source))
    require("torch", "train")
    from leukoscope.recipes.deploy import graph_of, load_model

    learned, contract = load_model(source)
    return Opened(source, Reader(contract, graph_of(learned, contract)), learned.classifiers)


def maps_of(opened: Opened) -> Maps:
    """Grad-CAM by the graph's own outputs, or else by torch.

    InputError, with the fix, where a bundle's network needs torch, or networks were never trained
    to classify.
    """
    model = opened.contract.model
    if model.heat_maps:
        return _by_graph(opened.reader)
    if opened.classifiers is None:
        raise InputError(
            f"Heat maps of {model.described} need the run that the bundle was exported from",
            fix="Run leukoscope explain RUN IMAGE… -o DIR, with 'leukoscope[train]' installed.",
            field="source",
        )
    if not all(network.classifies for network in model.networks):
        raise InputError(
            f"{opened.source} has no heat maps: its networks give features and were not trained "
            "to classify",
            fix="Train with --set features.finetune=true.",
            field="source",
        )
    return _by_torch(opened, opened.classifiers)


def _by_graph(reader: Reader) -> Maps:
    outputs = ("logits", "features", "feature_map", "class_gradient")

    def maps(prepared: np.ndarray) -> tuple[Answers, list[np.ndarray]]:
        logits, features, feature_map, gradient = reader.run(prepared[None], outputs)
        said = answers(logits, features, reader.contract)
        return said, [heat_map(feature_map[0], gradient[0, int(said.probs[0].argmax())])]

    return maps


def _by_torch(opened: Opened, classifiers: Sequence[Classifier]) -> Maps:
    from leukoscope.explain.autograd import class_maps

    def maps(prepared: np.ndarray) -> tuple[Answers, list[np.ndarray]]:
        said = opened.reader.answer(prepared[None])
        best = [int(said.probs[0].argmax())]
        networks = zip(opened.contract.model.networks, classifiers, strict=True)
        found = [class_maps(c, _own(opened, n, prepared[None]), best) for n, c in networks]
        return said, [scaled(each[0, 0].numpy()) for each in found]

    return maps


def _own(opened: Opened, network: Network, prepared: np.ndarray) -> Tensor:
    """(n, 3, h, w) prepared images by the network's own normalisation of the same pixels."""
    import torch

    def channels(values: Sequence[float]) -> np.ndarray:
        return np.array(values, np.float32)[:, None, None]

    given = opened.contract.input
    pixels = prepared * channels(given.std) + channels(given.mean)
    return torch.from_numpy((pixels - channels(network.mean)) / channels(network.std))


def sanity(opened: Opened, prepared: np.ndarray, classes: Sequence[int]) -> dict[str, Any]:
    """sanity.json: whether the maps of a few images change when weights are drawn at random.

    prepared: (n, 3, h, w); classes: (n,), the predicted ones. InputError where torch's networks are
    not at hand, or `maps_of` has none.
    """
    if opened.classifiers is None:
        raise InputError(
            "The sanity check draws the networks' weights at random, which needs the run that the "
            "bundle was exported from",
            fix="Run leukoscope explain RUN IMAGE… --sanity -o DIR.",
            field="sanity",
        )
    maps_of(opened)
    from leukoscope.explain.sanity import LIMIT, randomised
    from leukoscope.recipes.deploy import untrained

    found = []
    networks = zip(opened.names, opened.contract.model.networks, opened.classifiers, strict=True)
    for name, network, classifier in networks:
        blank = partial(untrained, network, opened.contract)
        result = randomised(classifier, blank, _own(opened, network, prepared), classes)
        found.append({"network": name, **result})
    verdicts = {entry["passed"] for entry in found}
    passed = next(verdict for verdict in (False, None, True) if verdict in verdicts)
    says = _sanity_says(passed, found)
    return {"images": len(classes), "limit": LIMIT, "passed": passed, "says": says,
            "networks": found}  # fmt: skip


def _sanity_says(passed: bool | None, found: Sequence[dict[str, Any]]) -> str:
    if passed:
        return "The heat maps pass the sanity check: they change when weights are drawn at random."
    if passed is None:
        whys = [f"{entry['network']}: {entry['why']}" for entry in found if entry["why"]]
        return f"The sanity check tells nothing: {'; '.join(whys)}."
    failed = ", ".join(entry["network"] for entry in found if entry["passed"] is False)
    return (
        f"The heat maps do not pass the sanity check ({failed}): with random weights they stay "
        "much the same, so that they show the image rather than what was learned."
    )
