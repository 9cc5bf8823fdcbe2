"""What "the last n layers" and "stage by stage" mean for each backbone.

A layer is a module with parameters of its own, and layers are in the order in which the network
first uses them, found by running it once without computing anything (on torch's meta device).
EfficientNets are counted as Keras counts them, since the paper that unfreezes "the last 60 layers"
used Keras: there an activation, a padding, a sum and each piece of squeeze and excitation is a
layer too. EfficientNetB4 without its top has 475 layers there (EfficientNetB0 238), of which the
last 60 are the final convolution, normalisation and activation (3), both blocks of stage 7 (28),
the last block of stage 6 (15) and all of the block before it but its first convolution (14).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from leukoscope.compat import import_timm
from leukoscope.errors import InputError
from leukoscope.models.weights import base_name

_BODY = (r"body\.(conv1|bn1)\.", *(rf"body\.layer{i}\." for i in range(1, 5)))
_STAGES: dict[str, tuple[str, ...]] = {
    r"cnn": tuple(rf"blocks\.({3 * i}|{3 * i + 1})\." for i in range(5)),
    r"alexnet": (*(rf"features\.{i}\." for i in (0, 3, 6, 8, 10)), r"classifier\.1\.",
                 r"classifier\.4\."),
    r"alexnet_2012": (*(rf"features\.{i}\." for i in (0, 4, 8, 10, 12)), r"classifier\.0\.",
                      r"classifier\.3\."),
    # The pyramid and subnets, which are new together, are one stage, as are CenterNet's branches.
    r"retinanet": (*_BODY, r"(pyramid|class_subnet|box_subnet|offsets|objectness)\."),
    r"centernet": (*_BODY, r"(upsampling|centre|offset|size)\."),
    r"convnext_\w+": (r"stem\.", *(rf"stages\.{i}\." for i in range(4)), r"head\."),
    r"resnet\d+": (r"(conv1|bn1)\.", *(rf"layer{i}\." for i in range(1, 5))),
    r"densenet\d+": (r"features\.(conv0|norm0)\.",
                     *(rf"features\.(denseblock|transition){i}\." for i in range(1, 4)),
                     r"features\.(denseblock4|norm5)\."),
    r"vit_base_\w+": (r"network\.(cls_token|pos_embed|patch_embed)",
                      *(rf"network\.blocks\.{i}\." for i in range(11)),
                      r"network\.(blocks\.11|norm)\."),
    r"(efficientnet_b\d|mobilenetv2_\w+)": (
        r"(conv_stem|bn1)\.", *(rf"blocks\.{i}\." for i in range(7)), r"(conv_head|bn2)\."),
    r"vgg16": (r"features\.[0-4]\.", r"features\.[5-9]\.", r"features\.1[0-6]\.",
               r"features\.(1[7-9]|2[0-3])\.", r"features\.(2[4-9]|30)\.", r"classifier\.0\.",
               r"classifier\.3\."),
    r"legacy_xception": (r"(conv[12]|bn[12]|block[1-3])\.", r"block([4-9]|10|11)\.",
                         r"(block12|conv[34]|bn[34])\."),
    r"inception_resnet_v2": (r"network\.conv2d_[1-4]", r"network\.(mixed_5b|repeat)\.",
                             r"network\.(mixed_6a|repeat_1)\.",
                             r"network\.(mixed_7a|repeat_2|block8)\.", r"network\.conv2d_7b\."),
}  # fmt: skip
"""How the parameters of each stage start, from input to output, by backbone.

The stages are those of the networks' papers: what lies between two halvings of the resolution (of
ViT a block; of VGG and AlexNet also each fully connected layer; of Xception its entry, middle and
exit flow), stem and final convolution or normalisation by themselves.
"""


def layer_count(name: str, backbone: nn.Module) -> int:
    """How many layers a backbone has, as this module counts them."""
    return len(_layers(name, backbone))


def layer_parameters(name: str, backbone: nn.Module, last: int) -> list[str]:
    """The names, as in `backbone.named_parameters()`, of what its last `last` layers hold.

    Raises InputError unless 0 <= last <= `layer_count`.
    """
    layers = _layers(name, backbone)
    if not 0 <= last <= len(layers):
        raise InputError(
            f"Can't take the last {last} layers of {name}, which has {len(layers)}",
            fix=f"Choose a number from 0 to {len(layers)}.",
            field="last",
        )
    return [parameter for layer in layers[len(layers) - last :] for parameter in layer]


def stage_parameters(name: str, backbone: nn.Module) -> list[list[str]]:
    """The parameters of each stage from input to output: every parameter in exactly one of them.

    A timm network that isn't among those of the papers is divided as timm itself divides it.
    """
    names = [key for key, _ in backbone.named_parameters()]
    known = [stages for key, stages in _STAGES.items() if re.fullmatch(key, base_name(name))]
    if not known:
        return _timm_stages(backbone, names)
    found = [[key for key in names if re.match(stage, key)] for stage in known[0]]
    assert sorted(key for stage in found for key in stage) == sorted(names), name
    return found


def _timm_stages(backbone: nn.Module, names: list[str]) -> list[list[str]]:
    # What the wrappers in `backbones` hold is timm's, under this name.
    wrapped = "network." if hasattr(backbone, "network") else ""
    network: Any = backbone.network if wrapped else backbone
    if not hasattr(network, "group_matcher"):
        return [names]
    groups = import_timm().models.group_parameters(network, network.group_matcher(coarse=True))
    return [[wrapped + key for key in groups[number]] for number in sorted(groups)]


def _layers(name: str, backbone: nn.Module) -> list[list[str]]:
    """The names of each layer's own parameters, none where it has none, in running order."""
    if re.fullmatch(r"(tf_)?efficientnet_b\d", base_name(name)):
        return [_own(module, path) for module, path in _keras_layers(backbone)]
    order = parameter_order(backbone)
    layers: dict[str, list[str]] = {}
    for key in order:
        layers.setdefault(key.rpartition(".")[0], []).append(key)
    return list(layers.values())


def _own(module: nn.Module | None, path: str) -> list[str]:
    if module is None:
        return []
    return [f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)]


Layer = tuple[nn.Module | None, str]
"""A module and its path, or None and what Keras calls the layer that torch has no module for."""


def _keras_layers(backbone: Any) -> Iterator[Layer]:
    """The layers of keras.applications' EfficientNet with ImageNet weights, without its top.

    Their order is that of its source (keras 3, applications/efficientnet.py). Without ImageNet
    weights Keras leaves out the second rescaling, an input step: B0 then has 237, B4 474.
    """
    for step in ("input", "rescaling", "normalization", "rescaling_1", "stem_conv_pad"):
        yield None, step
    yield from _normalised(backbone.conv_stem, backbone.bn1, "conv_stem", "bn1")
    first = True
    for i, stage in enumerate(backbone.blocks):
        for j, block in enumerate(stage):
            yield from _keras_block(block, f"blocks.{i}.{j}", drops=not first)
            first = False
    yield from _normalised(backbone.conv_head, backbone.bn2, "conv_head", "bn2")


def _keras_block(block: Any, path: str, *, drops: bool) -> Iterator[Layer]:
    expands = hasattr(block, "conv_pwl")
    if expands:
        yield from _normalised(block.conv_pw, block.bn1, f"{path}.conv_pw", f"{path}.bn1")
    if max(block.conv_dw.stride) == 2:
        yield None, "dwconv_pad"
    second = "bn2" if expands else "bn1"
    yield from _normalised(
        block.conv_dw, getattr(block, second), f"{path}.conv_dw", f"{path}.{second}"
    )
    yield None, "se_squeeze"
    yield None, "se_reshape"
    yield block.se.conv_reduce, f"{path}.se.conv_reduce"
    yield block.se.conv_expand, f"{path}.se.conv_expand"
    yield None, "se_excite"
    project, third = ("conv_pwl", "bn3") if expands else ("conv_pw", "bn2")
    yield getattr(block, project), f"{path}.{project}"
    yield getattr(block, third), f"{path}.{third}"
    if block.has_skip:
        if drops:  # the rate of the first block is 0, for which Keras makes no layer
            yield None, "drop"
        yield None, "add"


def _normalised(convolution: nn.Module, norm: nn.Module, *paths: str) -> Iterator[Layer]:
    yield convolution, paths[0]
    yield norm, paths[1]
    yield None, "activation"


def parameter_order(backbone: nn.Module) -> list[str]:
    """All parameters' names, in the order in which a pass first uses them.

    A detector's pass includes its box branches. Parameters that no pass uses come first.
    """
    names = [key for key, _ in backbone.named_parameters()]
    whole = _Whole(backbone)
    meta = {
        key: torch.empty_like(value, device="meta")
        for part in (whole.named_parameters(), whole.named_buffers())
        for key, value in part
    }
    modes = [(module, module.training) for module in backbone.modules()]
    uses = _Uses({id(meta[f"backbone.{key}"]): key for key in names})
    try:
        backbone.eval()  # a fresh normalisation needs more than one value a channel to train
        with torch.no_grad(), uses:
            torch.func.functional_call(whole, meta, (_images(backbone),))
    finally:
        for module, training in modes:
            module.training = training
    return [key for key in names if key not in uses.found] + list(uses.found)


def _images(backbone: nn.Module) -> Tensor:
    """Images of the size that the network was made for, else of 224 px, that hold no values."""
    settings: Any = getattr(backbone, "pretrained_cfg", {})
    return torch.empty(2, *settings.get("input_size", (3, 224, 224)), device="meta")


class _Whole(nn.Module):
    """A backbone with all its branches."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Any:
        return getattr(self.backbone, "with_boxes", self.backbone)(images)


class _Uses(TorchDispatchMode):
    """Notes, in order, which of some tensors operations take."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.found: dict[str, None] = {}  # ordered, each once

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature is torch's
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self.names:
                self.found.setdefault(self.names[id(value)])
        return func(*args, **kwargs)
