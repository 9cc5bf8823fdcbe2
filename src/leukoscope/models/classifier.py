"""A classifier: a backbone's last feature map, global average pooling, a head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leukoscope.errors import InputError
from leukoscope.models.backbones import ClassToken, FullyConnected, build_backbone
from leukoscope.models.weights import Weights

LAYERS = ("dropout", "dense", "relu")


class Classifier(nn.Module):
    """Logits of images: head(mean over height and width of backbone(images)).

    `backbone` maps (n, 3, h, w) normalised images to an (n, d, h', w') feature map; `head` maps
    the (n, d) pooled features to (n, classes) logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.head[-1].out_features)  # type: ignore[arg-type]

    def pooled(self, images: Tensor) -> Tensor:
        """(n, d) features after global average pooling."""
        return self.backbone(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(n, classes) logits."""
        return self.head(self.pooled(images))


class Pooled(nn.Module):
    """The backbone alone: (n, d) pooled features of images."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.pooled(images)


def gives_heat_maps(classifier: Classifier) -> bool:
    """Whether the head follows a mean over a feature map, so that Grad-CAM needs no more than the
    map and the head; the fully connected networks and transformers do not."""
    return not isinstance(classifier.backbone, FullyConnected | ClassToken)


class Deployed(nn.Module):
    """What the ONNX graph computes: (logits, features, feature_map, class_gradient), or the first
    `outputs` of these.

    `class_gradient` is (n, classes, d): the gradient of each logit by the pooled features. Since
    pooling is a mean, Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) weighs the feature map with
    exactly this, so heat maps need neither torch nor a second pass.
    """

    def __init__(self, classifier: Classifier, outputs: int = 4) -> None:
        super().__init__()
        self.classifier = classifier
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        feature_map = self.classifier.backbone(images)
        features = feature_map.mean(dim=(2, 3))
        head = self.classifier.head
        found = head(features), features, feature_map, head_gradient(head, features)
        return found[: self.outputs]


def head_gradient(head: nn.Sequential, features: Tensor) -> Tensor:
    """(n, classes, d) exact gradient of a head of dense and ReLU layers by its (n, d) input."""
    steps: list[tuple[nn.Module, Tensor]] = []
    value = features
    for layer in head:
        steps.append((layer, value))
        value = layer(value)
    gradient: Tensor | None = None
    for layer, before in reversed(steps):
        if isinstance(layer, nn.Linear):
            weight = layer.weight
            gradient = (
                weight.unsqueeze(0).expand(features.shape[0], -1, -1)
                if gradient is None
                else gradient @ weight
            )
        elif isinstance(layer, nn.ReLU) and gradient is not None:
            gradient = gradient * (before > 0).to(gradient.dtype).unsqueeze(1)
    assert gradient is not None, "a head ends in a dense layer"
    return gradient


def build(
    architecture: str,
    head: Sequence[dict[str, Any]],
    classes: int,
    weights: Weights,
    *,
    seed: int,
) -> Classifier:
    """Backbone with its starting weights and a freshly initialised head, deterministic by seed.

    Raises InputError for an unknown architecture or weights that don't fit.
    """
    with seeded(seed, 0):
        backbone, width = build_backbone(architecture, weights)
        return Classifier(backbone, build_head(head, width, classes))


def build_head(layers: Sequence[dict[str, Any]], width: int, classes: int) -> nn.Sequential:
    """The head as a recipe lists it (dropout, dense, relu), ended by a dense layer of `classes`.

    Dense layers start as in Glorot & Bengio 2010 (uniform, zero bias), the Keras default.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        if layer["layer"] == "dropout":
            modules.append(nn.Dropout(layer["p"]))
        elif layer["layer"] == "dense":
            modules.append(nn.Linear(width, layer["units"]))
            width = layer["units"]
        elif layer["layer"] == "relu":
            modules.append(nn.ReLU())
        else:
            raise InputError(
                f"Unknown head layer {layer['layer']!r}; allowed: {', '.join(LAYERS)}",
                fix="Correct model.head in the recipe.",
                field="model.head",
            )
    modules.append(nn.Linear(width, classes))
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return nn.Sequential(*modules)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the block torch's random numbers are a pure function of `key`; outside, untouched.

    Library layers (dropout, stochastic depth, initialisers) draw from torch's global generator and
    take no other; forking it keeps them reproducible, so that a resumed run needs no saved state.
    """
    import numpy as np

    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed notes a stack trace at every call as long as no GPU was used.
        torch.default_generator.manual_seed(state)
        if devices:
            torch.cuda.manual_seed_all(state)
        yield
