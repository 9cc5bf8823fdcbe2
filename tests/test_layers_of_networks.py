"""Layers and stages of every backbone: partitions, in the order that a pass really takes."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from leukoscope.errors import InputError
from leukoscope.models import layers
from leukoscope.models.backbones import build_backbone
from leukoscope.models.layers import (
    layer_count,
    layer_parameters,
    parameter_order,
    stage_parameters,
)
from leukoscope.models.weights import resolve

# Stages and layers of each network; the layers of the two EfficientNets are Keras's.
NETWORKS = {
    "cnn": (5, 10),
    "alexnet": (7, 7),
    "alexnet_2012": (7, 7),
    "retinanet": (6, 124),
    "centernet": (6, 124),
    "convnext_base": (6, 189),
    "convnext_tiny.fb_in1k": (6, 99),
    "resnet50": (5, 106),
    "resnet101": (5, 208),
    "densenet121": (5, 241),
    "vit_base_patch16_224": (13, 75),
    "efficientnet_b0": (9, 238),
    "efficientnet_b4": (9, 475),
    "mobilenetv2_100": (9, 104),
    "vgg16": (7, 15),
    "legacy_xception": (3, 114),
    "inception_resnet_v2": (5, 448),
    # Others of timm's, divided as timm does.
    "regnety_002": (5, 114),
    "vit_tiny_patch16_224": (13, 75),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@cache
def network(name: str) -> nn.Module:
    with torch.device("meta"):  # names and shapes, no values
        return build_backbone(name, resolve("none", name))[0]


@cache
def order(name: str) -> list[str]:
    return parameter_order(network(name))


def names(module: nn.Module) -> list[str]:
    return [key for key, _ in module.named_parameters()]


@every_network
def test_stages_partition_the_parameters_in_running_order(name: str) -> None:
    stages = stage_parameters(name, network(name))
    assert len(stages) == NETWORKS[name][0]
    assert sorted(key for stage in stages for key in stage) == sorted(names(network(name)))
    place = {key: number for number, key in enumerate(order(name))}
    spans = [(min(place[k] for k in stage), max(place[k] for k in stage)) for stage in stages]
    assert all(one[1] < following[0] for one, following in pairwise(spans))


@every_network
def test_the_last_layers_grow_to_the_whole_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "parameter_order", lambda _: order(name))  # found once
    module = network(name)
    count = layer_count(name, module)
    assert count == NETWORKS[name][1]
    assert layer_parameters(name, module, 0) == []
    assert sorted(layer_parameters(name, module, count)) == sorted(names(module))
    smaller: set[str] = set()
    for last in (1, 2, 3, count // 2, count - 1, count):
        larger = set(layer_parameters(name, module, last))
        assert smaller <= larger
        smaller = larger
    # What is unfrozen first is what runs last.
    some = set(layer_parameters(name, module, count // 2))
    assert some == set(order(name)[-len(some) :])


@every_network
def test_the_running_order_is_what_forward_hooks_see(name: str) -> None:
    module = network(name).eval()
    paths = {part: path for path, part in module.named_modules()}
    # A module without children runs its parameters when it is called.
    simple = [p for p in paths if not [*p.children()] and [*p.parameters(recurse=False)]]
    simple += [
        p
        for p in paths
        if type(p).__name__ == "BatchNormAct2d"  # its children hold no parameters
    ]
    seen: dict[str, None] = {}
    hooks = [p.register_forward_pre_hook(lambda p, _: seen.setdefault(paths[p])) for p in simple]
    with torch.no_grad():
        getattr(module, "with_boxes", module)(torch.empty(2, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    expected = list(dict.fromkeys(key.rpartition(".")[0] for key in order(name)))
    assert [path for path in expected if path in seen] == list(seen)
    assert len(seen) == len({*simple})


def test_what_a_block_holds_itself_counts_where_it_is_used() -> None:
    scales = order("convnext_tiny.fb_in1k")
    assert scales.index("stages.0.blocks.0.gamma") > scales.index(
        "stages.0.blocks.0.mlp.fc2.weight"
    )
    tokens = order("vit_base_patch16_224")
    assert tokens.index("network.cls_token") == tokens.index("network.patch_embed.proj.bias") + 1
    assert tokens[-2:] == ["network.norm.weight", "network.norm.bias"]


def test_the_last_60_layers_of_efficientnet_b4_are_keras_s() -> None:
    """By hand from keras.applications: top 3, block7b 15, block7a 13, block6h 15, 14 of block6g."""
    module = network("efficientnet_b4")
    last = {key.rpartition(".")[0] for key in layer_parameters("efficientnet_b4", module, 60)}
    block = [
        "conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3",
    ]  # fmt: skip
    whole = {f"blocks.{path}.{part}" for path in ("6.1", "6.0", "5.7", "5.6") for part in block}
    assert last == {"conv_head", "bn2"} | whole - {"blocks.5.6.conv_pw"}
    one_more = layer_parameters("efficientnet_b4", module, 61)
    assert {key.rpartition(".")[0] for key in one_more} == last | {"blocks.5.6.conv_pw"}
    # The three layers of the top: an activation without parameters, a normalisation, a convolution.
    assert [len(layer_parameters("efficientnet_b4", module, n)) for n in (1, 2, 3)] == [0, 2, 3]


@pytest.mark.parametrize("last", [-1, 11])
def test_more_layers_than_there_are_is_an_error(last: int) -> None:
    with pytest.raises(InputError, match=rf"last {last} layers of cnn, which has 10.*0 to 10"):
        layer_parameters("cnn", network("cnn"), last)


def test_finding_the_order_leaves_the_network_as_it_was() -> None:
    module, _ = build_backbone("cnn", resolve("none", "cnn"))
    module.train()
    module.blocks[1].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert parameter_order(module) == names(module)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [m.training for m in module.blocks[:3]] == [True, False, True]


def test_parameters_that_no_pass_uses_count_first() -> None:
    module, _ = build_backbone("cnn", resolve("none", "cnn"))
    module.spare = nn.Linear(2, 2)
    assert parameter_order(module)[:2] == ["spare.weight", "spare.bias"]
