"""Backbones by name: any timm architecture, and the networks that timm doesn't have.

Each gives an (n, d, h, w) feature map whose mean over h and w is what the head classifies. Where a
network's own pooled representation is no spatial mean, the map is that representation as
(n, d, 1, 1): a ViT's class token, fc7 of VGG and AlexNet. (ConvNeXt's last normalisation runs at
every position of the map, before the mean.) All take images of 32 px and more: what can't go
through a network's strides is enlarged first, grids of tokens are interpolated, and fully connected
layers stand behind an adaptive pooling.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from leukoscope.compat import import_timm
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.models.detectors import CenterNet, RetinaNet
from leukoscope.models.weights import (
    BODIES,
    TORCHVISION,
    Weights,
    base_name,
    not_downloaded,
    read_state,
)
from leukoscope.registry import Registry

SMALLEST = {"inception_resnet_v2": 75}  # its unpadded strides leave nothing of smaller images
PYRAMID = (2, 3, 4)  # which of a body's maps a detector takes: strides 8, 16 and 32

backbones: Registry[Callable[..., nn.Module]] = Registry("backbone")
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

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) images to an (n, 256, h / 32, w / 32) feature map."""
        return self.blocks(images)


class FullyConnected(nn.Module):
    """VGG-16 and the AlexNets: convolutions, a pooling to a fixed grid, fc6 and fc7.

    `features` ends in the pooling after the last convolution, `classifier` in the ReLU of fc7.
    Dropout stands within the classifier; that between fc7 and fc8 is the head's.
    """

    def __init__(
        self, features: nn.Sequential, grid: int, classifier: nn.Sequential, smallest: int
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.grid = grid
        self.smallest = smallest
        self.num_features = int(classifier[-2].out_features)  # type: ignore[arg-type]

    def last_map(self, images: Tensor) -> Tensor:
        """The last convolution's map after its ReLU, before the pooling that follows."""
        return self.features[:-1](enlarged(images, self.smallest))

    def pool5(self, last_map: Tensor) -> Tensor:
        """(n, channels, grid, grid): the pooling after the last convolution.

        At the size a network was made for its own pooling gives this grid; at others an adaptive
        mean brings it to the grid that fc6 takes.
        """
        return adaptive_mean(self.features[-1](last_map), self.grid)

    def fc7(self, last_map: Tensor) -> Tensor:
        """(n, 4096) before the ReLU."""
        return self.classifier[:-1](self.pool5(last_map).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) images to fc7 after its ReLU, (n, 4096, 1, 1)."""
        return self.classifier[-1](self.fc7(self.last_map(images)))[..., None, None]


class ClassToken(nn.Module):
    """A vision transformer: (n, d, 1, 1), its class token after the last normalisation.

    Images of other sizes than the network's own make a grid of other sides, to which the position
    embedding is resampled; what doesn't fill a patch is padded with zeros.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.num_features = int(network.num_features)  # type: ignore[arg-type]

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of (n, 3, h, w) images."""
        down, across = self.network.patch_embed.patch_size
        return -(-int(images.shape[2]) // down), -(-int(images.shape[3]) // across)

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        patches = network.patch_embed(images).flatten(1, 2)
        first = network.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([first, patches], dim=1) + self._positions(self.grid(images))
        tokens = network.blocks(network.norm_pre(network.pos_drop(tokens)))
        return network.norm(tokens)[:, 0, :, None, None]

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        known = self.network.pos_embed
        rows, columns = self.network.patch_embed.grid_size
        if (rows, columns) == grid:
            return known
        down, across = (
            torch.from_numpy(cubic_resampling(before, after)).to(known)
            for before, after in ((rows, grid[0]), (columns, grid[1]))
        )
        patches = (down @ known[0, 1:].reshape(rows, -1)).reshape(grid[0], columns, -1)
        return torch.cat([known[:, :1], (across @ patches).reshape(1, grid[0] * grid[1], -1)], 1)


class Enlarging(nn.Module):
    """A network that needs images of at least `smallest` px a side, for smaller ones too."""

    def __init__(self, network: nn.Module, smallest: int) -> None:
        super().__init__()
        self.network = network
        self.smallest = smallest
        self.num_features = int(network.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(enlarged(images, self.smallest))


def enlarged(images: Tensor, smallest: int) -> Tensor:
    """The images, bilinearly enlarged so that neither side is shorter than `smallest` px."""
    height, width = images.shape[2:]
    size = (max(height, smallest), max(width, smallest))
    if size == (height, width):
        return images
    return interpolate(images, size, mode="bilinear", align_corners=False)


# The two that follow are matrices in place of torch's own operations, since those don't go into an
# ONNX graph for sides that are no multiples.
def adaptive_mean(maps: Tensor, side: int) -> Tensor:
    """(n, d, side, side) of (n, d, h, w) maps, as torch's `adaptive_avg_pool2d`."""
    height, width = int(maps.shape[2]), int(maps.shape[3])
    if (height, width) == (side, side):
        return maps
    down, across = (torch.from_numpy(_windows(n, side)).to(maps) for n in (height, width))
    return down @ maps @ across.T


def _windows(before: int, after: int) -> np.ndarray:
    """(after, before) weights of the mean over each of `after` windows, float32."""
    place = np.arange(before)
    low = np.arange(after)[:, None] * before // after
    high = -(-(np.arange(after)[:, None] + 1) * before // after)
    inside = (low <= place) & (place < high)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def cubic_resampling(before: int, after: int) -> np.ndarray:
    """(after, before) weights of cubic convolution (Keys 1981, a = -1/2), float32.

    Made wider by the scale where it makes smaller, as in `interpolate(..., antialias=True)`.
    """
    scale = before / after
    centre = (np.arange(after)[:, None] + 0.5) * scale - 0.5
    x = np.abs(np.arange(before) - centre) / max(scale, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


backbones.register("cnn")(ConvolutionalNetwork)
backbones.register("retinanet")(RetinaNet)
backbones.register("centernet")(CenterNet)


@backbones.register("alexnet")
def alexnet() -> FullyConnected:
    """torchvision's AlexNet (Krizhevsky 2014): 64 to 384 filters, one group, no normalisation."""
    import_timm()  # makes torchvision importable
    from torchvision.models import alexnet as build

    network = build()
    return FullyConnected(network.features, 6, network.classifier[:-1], smallest=63)


@backbones.register("alexnet_2012")
def alexnet_2012() -> FullyConnected:
    """The five-convolution network of Krizhevsky, Sutskever & Hinton 2012, section 3.

    Two pixels of padding before the first convolution give the 55x55 map of their figure 2 from
    the 224 px that they state, and a 6x6 map after the fifth's pooling from 224 and 227 px alike.
    Weights start as in He et al. 2015 (eq. 10), biases at 0: the original's N(0, .01) and biases of
    1 leave nearly the same features for all images until it has trained for long.
    """
    response = {"size": 5, "alpha": 1e-4 * 5, "beta": 0.75, "k": 2.0}  # torch divides by the size
    features = nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(**response),  # type: ignore[arg-type]
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.LocalResponseNorm(**response),  # type: ignore[arg-type]
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
    )
    classifier = _fully_connected(nn.Linear(256 * 6 * 6, 4096), nn.Linear(4096, 4096))
    network = FullyConnected(features, 6, classifier, smallest=63)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def _fully_connected(fc6: nn.Linear, fc7: nn.Linear) -> nn.Sequential:
    return nn.Sequential(fc6, nn.ReLU(), nn.Dropout(0.5), fc7, nn.ReLU())


def check_architecture(name: str) -> None:
    """UnknownNameError with the nearest match unless `name` is ours, timm's or torchvision's."""
    if name in backbones or name in TORCHVISION:
        return
    timm = import_timm()
    if not timm.is_model(name):
        raise UnknownNameError("backbone", name, [*backbones, *timm.list_models()])
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that isn't among the architecture's
        known = [*timm.list_pretrained(f"{base_name(name)}.*"), *TORCHVISION]
        raise UnknownNameError("backbone", name, known) from None


def build_backbone(name: str, weights: Weights) -> tuple[nn.Module, int]:
    """The network up to its last feature map, with its starting weights, and that map's width.

    Raises InputError for an unknown name or tag, and for weights that don't fit.
    """
    check_architecture(name)
    network = _own(name, weights) if name in backbones else _timm(name, weights)
    return network, int(network.num_features)  # type: ignore[arg-type]


def _own(name: str, weights: Weights) -> nn.Module:
    if name in BODIES:
        body = _create(BODIES[name], weights, features_only=True, out_indices=PYRAMID)
        network = backbones[name](body, body.feature_info.channels())
        # A file is either the body's or, from an earlier training, the whole network's.
        mine = weights.architecture == name
        _load(network if mine else body, weights, name if mine else BODIES[name])
        return network
    if weights.origin == "auto" and name not in TORCHVISION:
        raise InputError(
            f"Backbone {name!r} is trained from scratch, no weights of it can be downloaded",
            fix=f"Use --weights none, or --weights PATH (.safetensors whose .json states "
            f"architecture {name}).",
            field="weights",
        )
    if weights.arguments:
        raise InputError(
            f"The weights contract of {name} sets {', '.join(weights.arguments)}; "
            f"{name} takes no arguments",
            fix="Leave `arguments` out of the .json beside the weights.",
            field="weights",
        )
    network = backbones[name]()
    _load(network, weights, name)
    return network


def _timm(name: str, weights: Weights) -> nn.Module:
    settings: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    if base_name(name).startswith("vit_"):
        settings |= {"dynamic_img_size": True, "dynamic_img_pad": True}
    network = _create(name, weights, **settings)
    _load(network, weights, name)
    models = import_timm().models
    if isinstance(network, models.VGG):
        layers = network.pre_logits
        classifier = _fully_connected(_linear(layers.fc1), _linear(layers.fc2))
        return FullyConnected(network.features, 7, classifier, smallest=32)
    if isinstance(network, models.VisionTransformer):
        _check_tokens(name, network)
        return ClassToken(network)
    smallest = SMALLEST.get(base_name(name))
    return Enlarging(network, smallest) if smallest else network


def _check_tokens(name: str, network: Any) -> None:
    """InputError unless tokens are those of Dosovitskiy et al. 2021, as ClassToken runs them."""
    embedded = network.pos_embed
    whole = 1 + network.patch_embed.num_patches
    if network.cls_token is None or embedded is None or embedded.shape[1] != whole:
        raise InputError(
            f"{name} is a transformer without one class token among its embedded positions",
            fix="Choose one that has it, for example vit_base_patch16_224.",
            field="backbone",
        )


def _linear(convolution: nn.Conv2d) -> nn.Linear:
    """The dense layer that a convolution over its whole input is."""
    weight = convolution.weight.detach().flatten(1)
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(weight)
    assert convolution.bias is not None
    linear.bias = nn.Parameter(convolution.bias.detach())
    return linear


def _create(name: str, weights: Weights, **settings: Any) -> Any:
    timm = import_timm()
    # What create_model itself takes could load another file past the contract's checksum.
    own = sorted({*weights.arguments} & {*inspect.signature(timm.create_model).parameters})
    if own:
        raise InputError(
            f"The weights contract of {name} sets {', '.join(own)}, which a contract may not",
            fix="Keep only arguments of the architecture in the .json beside the weights.",
            field="weights",
        )
    download = weights.origin == "auto" and weights.library == "timm"
    name = base_name(name) if name in TORCHVISION else name
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries aren't news
    try:
        return timm.create_model(name, pretrained=download, **{**settings, **weights.arguments})
    except TypeError as problem:
        raise InputError(
            f"{name} doesn't take the arguments of its weights contract: {problem}",
            fix="Correct `arguments` in the .json beside the weights.",
            field="weights",
        ) from None
    except Exception as problem:
        if not download:
            raise
        raise not_downloaded(name, problem) from None


def _load(network: nn.Module, weights: Weights, name: str) -> None:
    """Load what isn't there yet: a file's weights, or torchvision's."""
    if weights.path is None and not (weights.origin == "auto" and weights.library == "torchvision"):
        return
    state = read_state(weights)
    # The ImageNet classifier that follows the feature map isn't part of the backbone.
    heads = _heads(name)
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    try:
        network.load_state_dict(state)
    except RuntimeError as problem:
        detail = str(problem).splitlines()[-1].strip()
        source = weights.path.name if weights.path else f"torchvision's file of {name}"
        raise InputError(
            f"{source} doesn't fit {name}: {detail[:200]}",
            fix="Check architecture, library and arguments in the .json beside it.",
            field="weights",
        ) from None


def _heads(name: str) -> tuple[str, ...]:
    """How the names of an architecture's classifier parameters start."""
    if name in backbones:
        return ("classifier.6.",) if name == "alexnet" else ()
    settings = import_timm().get_pretrained_cfg(base_name(name))
    classifier = settings.classifier if settings else ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return tuple(f"{name}." for name in names)
