"""Backbones by name: any timm architecture, and the networks that timm doesn't have."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leukoscope.compat import import_timm
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.models.weights import Weights
from leukoscope.registry import Registry

backbones: Registry[Callable[[], nn.Module]] = Registry("backbone")
"""Networks of our own; each gives an (n, d, h, w) feature map and has `num_features` = d."""


class ConvolutionalNetwork(nn.Module):
    """The from-scratch baseline: five 3x3 convolutions of stride 2, normalised, with ReLU.

    The paper of `lightweight-cnn` gives no layers for its own; five halvings as in MobileNetV2 end
    in a 7x7 map at 224, and strides in place of pooling keep it affordable on two cores.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 3
        for width in widths:
            blocks += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.num_features = before

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) images to an (n, 256, h / 32, w / 32) feature map."""
        return self.blocks(images)


backbones.register("cnn")(ConvolutionalNetwork)


def check_architecture(name: str) -> None:
    """UnknownNameError with the nearest match unless `name` is ours or timm's."""
    if name not in backbones:
        timm = import_timm()
        if not timm.is_model(name):
            raise UnknownNameError("backbone", name, [*backbones, *timm.list_models()])


def build_backbone(name: str, weights: Weights) -> tuple[nn.Module, int]:
    """The network up to its last feature map, with its starting weights, and that map's width."""
    if name in backbones:
        if weights.origin != "none":
            raise InputError(
                f"Backbone {name!r} is trained from scratch, no weights exist for it",
                fix="Use --weights none.",
                field="weights",
            )
        own = backbones[name]()
        return own, int(own.num_features)  # type: ignore[arg-type]
    check_architecture(name)
    network = _create(name, weights)
    if weights.path is not None:
        _load(network, weights, name)
    return network, int(network.num_features)


def _create(name: str, weights: Weights) -> Any:
    timm = import_timm()
    # What create_model itself takes could load another file past the contract's checksum.
    own = sorted({*weights.arguments} & {*inspect.signature(timm.create_model).parameters})
    if own:
        raise InputError(
            f"The weights contract of {name} sets {', '.join(own)}, which a contract may not",
            fix="Keep only arguments of the architecture in the .json beside the weights.",
            field="weights",
        )
    arguments = {"num_classes": 0, "global_pool": "", **weights.arguments}
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries aren't news
    try:
        return timm.create_model(name, pretrained=weights.origin == "auto", **arguments)
    except TypeError as problem:
        raise InputError(
            f"{name} doesn't take the arguments of its weights contract: {problem}",
            fix="Correct `arguments` in the .json beside the weights.",
            field="weights",
        ) from None
    except Exception as problem:
        if weights.origin != "auto":
            raise
        # Whatever the hub's client raises without a network, the person needs the same fix.
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise InputError(
            f"The weights of {name} can't be downloaded: {reason[0][:160]}",
            fix="Connect to the internet, or give --weights PATH (.safetensors with its .json), "
            "or --weights none.",
            field="weights",
        ) from None


def _load(network: nn.Module, weights: Weights, name: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    assert weights.path is not None
    try:
        state = load_file(weights.path)
    except SafetensorError as problem:
        raise InputError(
            f"{weights.path.name} is no safetensors file: {problem}",
            fix="Get it again.",
            field="weights",
        ) from None
    # The ImageNet classifier that follows the feature map isn't part of the backbone.
    classifier = import_timm().get_pretrained_cfg(name).classifier
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    try:
        network.load_state_dict(state)
    except RuntimeError as problem:
        detail = str(problem).splitlines()[-1].strip()
        raise InputError(
            f"{weights.path.name} doesn't fit {name}: {detail[:200]}",
            fix="Check architecture and arguments in the .json beside it.",
            field="weights",
        ) from None
