"""Deep features: what a named layer of a network gives for an image, as a row of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.models.backbones import FullyConnected
from leukoscope.models.weights import InputFormat, base_name


class DeepLayer(nn.Module):
    """(n, `width`) features of (n, 3, h, w) images: one layer of a backbone."""

    def __init__(self, backbone: nn.Module, layer: str, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.layer = layer
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        backbone: Any = self.backbone
        if not isinstance(backbone, FullyConnected):
            return backbone(images).mean(dim=(2, 3))
        if self.layer == "gap":
            return backbone.last_map(images).mean(dim=(2, 3))
        if self.layer == "pool5":
            return backbone.pool5(backbone.last_map(images)).flatten(1)
        return backbone.fc7(backbone.last_map(images))


def deep_features(name: str, backbone: nn.Module, layer: str) -> DeepLayer:
    """A layer of backbone `name` as a module from images to its features; `width` is their number.

    `gap`: the mean of the last feature map over its positions (MobileNetV2 1280, ResNet 2048; of
    VGG and AlexNet the last convolution's, of a ViT the class token).
    `pool5`: of VGG-16 and the AlexNets the pooling after the fifth block's convolutions, flattened
    (25,088 and 9,216); of ResNets their global average pooling, which MATLAB calls so (2048).
    `fc7`: of VGG-16 and the AlexNets 4096 values before the ReLU, as MATLAB's
    `activations(net, ..., 'fc7')` gives them.

    Raises UnknownNameError for a layer that the network doesn't have.
    """
    widths = layer_widths(name, backbone)
    if layer not in widths:
        raise UnknownNameError(f"layer of {name}", layer, widths, field="layer")
    return DeepLayer(backbone, layer, widths[layer])


def layer_widths(name: str, backbone: nn.Module) -> dict[str, int]:
    """The layers that `deep_features` takes for a backbone, each with its number of features."""
    width = int(backbone.num_features)  # type: ignore[arg-type]
    if isinstance(backbone, FullyConnected):
        channels = [m for m in backbone.features if isinstance(m, nn.Conv2d)][-1].out_channels
        return {"gap": channels, "pool5": channels * backbone.grid**2, "fc7": width}
    if base_name(name).startswith("resnet"):
        return {"gap": width, "pool5": width}
    return {"gap": width}


def row_zscore(features: Tensor) -> Tensor:
    """Each row of (n, width) features less its mean, over its standard deviation.

    The standard deviation is that of a sample (over width - 1), as MATLAB's `zscore` takes it. A
    row whose values are all the same gives zeros.
    """
    centred = features - features.mean(dim=1, keepdim=True)
    deviation = (centred**2).sum(dim=1, keepdim=True).div(max(features.shape[1] - 1, 1)).sqrt()
    constant = features.amax(dim=1, keepdim=True) == features.amin(dim=1, keepdim=True)
    scale = torch.where(constant, torch.ones_like(deviation), deviation)
    return torch.where(constant, torch.zeros_like(centred), centred / scale)


class DeepFeatures(nn.Module):
    """The features of several networks on the same images, side by side.

    Images come normalised by the mean and std of `given`; each network gets them by its `own`.
    With `zscore` each network's features are z-scored by rows before they are joined. `widths`
    are the networks' numbers of features. Raises InputError unless each network has its format.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        own: Sequence[InputFormat],
        given: InputFormat,
        zscore: bool,
    ) -> None:
        super().__init__()
        if len(networks) != len(own) or not networks:
            raise InputError(
                f"{len(networks)} networks with {len(own)} input formats",
                fix="Give one input format a network, and at least one network.",
                field="networks",
            )
        self.networks = nn.ModuleList(networks)
        self.zscore = zscore
        self.widths = tuple(int(network.width) for network in networks)  # type: ignore[arg-type]
        self.register_buffer("factors", _rows([_factor(given, to) for to in own]))
        self.register_buffer("shifts", _rows([_shift(given, to) for to in own]))

    def forward(self, images: Tensor) -> Tensor:
        """(n, sum of `widths`) features of (n, 3, h, w) images."""
        parts = []
        for network, factor, shift in zip(self.networks, self.factors, self.shifts, strict=True):  # type: ignore[arg-type]
            features = network(images * factor + shift)
            parts.append(row_zscore(features) if self.zscore else features)
        return torch.cat(parts, dim=1)


def _factor(given: InputFormat, own: InputFormat) -> list[float]:
    return [a / b for a, b in zip(given.std, own.std, strict=True)]


def _shift(given: InputFormat, own: InputFormat) -> list[float]:
    return [(a - b) / s for a, b, s in zip(given.mean, own.mean, own.std, strict=True)]


def _rows(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, :, None, None]
