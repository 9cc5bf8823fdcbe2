"""Deep features by name: widths, what each layer is, z-scores, several networks side by side."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from leukoscope.compat import onnx_session
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.models.backbones import build_backbone
from leukoscope.models.classifier import seeded
from leukoscope.models.features import DeepFeatures, deep_features, layer_widths, row_zscore
from leukoscope.models.graph import to_onnx
from leukoscope.models.weights import IMAGENET, InputFormat, resolve

WIDTHS = {
    "mobilenetv2_100": {"gap": 1280},
    "resnet101": {"gap": 2048, "pool5": 2048},
    "resnet50.tv_in1k": {"gap": 2048, "pool5": 2048},
    "vgg16": {"gap": 512, "pool5": 25088, "fc7": 4096},
    "alexnet": {"gap": 256, "pool5": 9216, "fc7": 4096},
    "alexnet_2012": {"gap": 256, "pool5": 9216, "fc7": 4096},
    "vit_base_patch16_224": {"gap": 768},
    "efficientnet_b0": {"gap": 1280},
    "cnn": {"gap": 256},
}


@pytest.mark.parametrize("name", WIDTHS)
def test_layers_have_the_widths_that_the_table_states(name: str) -> None:
    with torch.device("meta"):
        backbone, _ = build_backbone(name, resolve("none", name))
        backbone.eval()
        assert layer_widths(name, backbone) == WIDTHS[name]
        for layer, width in WIDTHS[name].items():
            module = deep_features(name, backbone, layer)
            assert module.width == width
            for size in (64, 224, 227):
                assert module(torch.empty(2, 3, size, size)).shape == (2, width)


@pytest.mark.parametrize(("name", "layer"), [("cnn", "pool5"), ("alexnet_2012", "fc8")])
def test_unknown_layers_are_refused(name: str, layer: str) -> None:
    with torch.device("meta"):
        backbone, _ = build_backbone(name, resolve("none", name))
    with pytest.raises(UnknownNameError, match=rf"layer of {name} '{layer}'; allowed: .*gap"):
        deep_features(name, backbone, layer)


@cache
def alexnet() -> nn.Module:
    with seeded(0):
        return build_backbone("alexnet_2012", resolve("none", "alexnet_2012"))[0].eval()


def test_layers_of_the_2012_network_are_what_they_are_called() -> None:
    images = torch.rand(2, 3, 227, 227)
    network = alexnet()
    with torch.no_grad():
        pooled = network.features(images)
        assert pooled.shape == (2, 256, 6, 6)
        pool5 = deep_features("alexnet_2012", network, "pool5")(images)
        assert torch.allclose(pool5, pooled.flatten(1))
        fc7 = deep_features("alexnet_2012", network, "fc7")(images)
        fc6 = network.classifier[:3](pooled.flatten(1))
        assert torch.allclose(fc7, network.classifier[3](fc6), atol=1e-5)
        assert (fc7 < 0).any()
        assert torch.allclose(fc7.relu(), network(images)[:, :, 0, 0], atol=1e-6)


def test_row_zscores_are_scipys_and_constant_rows_are_zeros() -> None:
    rng = np.random.default_rng(0)
    features = torch.tensor(rng.normal(3, 5, (6, 40)), dtype=torch.float32)
    features[2] = 0.1
    found = row_zscore(features)
    expected = stats.zscore(features[[0, 1, 3, 4, 5]].numpy(), axis=1, ddof=1)
    np.testing.assert_allclose(found[[0, 1, 3, 4, 5]], expected, atol=1e-5)
    assert torch.equal(found[2], torch.zeros(40))
    assert torch.equal(row_zscore(torch.full((2, 1), 3.0)), torch.zeros(2, 1))


UNIT = InputFormat()
OWN = InputFormat(mean=IMAGENET[0], std=IMAGENET[1])


class Summary(nn.Module):
    """Mean and maximum of each channel."""

    width = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.amax(dim=(2, 3))], dim=1)


def test_each_network_gets_the_images_in_its_own_format() -> None:
    pixels = torch.rand(3, 3, 8, 8)
    half = InputFormat(mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.3))

    def as_format(wanted: InputFormat) -> torch.Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in (wanted.mean, wanted.std))
        return (pixels - mean) / std

    joined = DeepFeatures([Summary(), Summary(), Summary()], [UNIT, OWN, half], half, zscore=False)
    assert joined.widths == (6, 6, 6)
    expected = torch.cat([Summary()(as_format(f)) for f in (UNIT, OWN, half)], dim=1)
    assert torch.allclose(joined(as_format(half)), expected, atol=1e-6)
    scored = DeepFeatures([Summary(), Summary()], [UNIT, half], half, zscore=True)
    parts = [row_zscore(Summary()(as_format(f))) for f in (UNIT, half)]
    assert torch.allclose(scored(as_format(half)), torch.cat(parts, dim=1), atol=1e-5)


def test_networks_and_formats_come_in_pairs() -> None:
    with pytest.raises(InputError, match="2 networks with 1 input formats"):
        DeepFeatures([Summary(), Summary()], [UNIT], UNIT, zscore=False)


def test_joined_features_are_deployed() -> None:
    with seeded(0):
        cnn, _ = build_backbone("cnn", resolve("none", "cnn"))
    networks = [
        deep_features("cnn", cnn, "gap"),
        deep_features("alexnet_2012", alexnet(), "pool5"),
    ]
    joined = DeepFeatures(networks, [UNIT, OWN], UNIT, zscore=True)
    graph = to_onnx(joined, (64, 64), ("features",))  # which checks that both give the same
    (found,) = onnx_session(graph).run(None, {"images": np.zeros((3, 3, 64, 64), np.float32)})
    assert found.shape == (3, 256 + 9216)
