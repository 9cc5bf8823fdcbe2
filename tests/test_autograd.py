"""Grad-CAM by torch against captum's, and against that of the ONNX graph's outputs."""

from __future__ import annotations

import captum.attr
import numpy as np
import torch
from torch import Tensor, nn

from leukoscope.explain.autograd import class_maps
from leukoscope.explain.gradcam import heat_map
from leukoscope.models.classifier import Classifier, Deployed, build, seeded
from leukoscope.models.weights import resolve

HEAD = [{"layer": "dense", "units": 16}, {"layer": "relu"}]


def made(name: str, size: int) -> tuple[Classifier, Tensor]:
    classifier = build(name, HEAD, 3, resolve("none", name), seed=0).eval()
    with seeded(1):
        return classifier, torch.rand(2, 3, size, size)


def captums(classifier: Classifier, layer: nn.Module, images: Tensor) -> Tensor:
    cam = captum.attr.LayerGradCam(classifier, layer)
    return torch.cat(
        [cam.attribute(images, target=k, relu_attributions=True) for k in range(3)], dim=1
    )


def test_maps_of_a_convolutional_network_are_captums_and_the_graphs() -> None:
    classifier, images = made("cnn", 96)
    maps = class_maps(classifier, images)
    assert maps.shape == (2, 3, 3, 3)
    assert (maps >= 0).all()
    expected = captums(classifier, classifier.backbone, images)
    assert torch.allclose(maps, expected, rtol=1e-4, atol=1e-9)
    assert maps.max() > 0
    with torch.no_grad():
        _, _, feature_map, gradient = Deployed(classifier, 4)(images)
    for n in range(2):
        for k in range(3):
            heat = heat_map(feature_map[n].numpy(), gradient[n, k].detach().numpy())
            own = maps[n, k] / maps[n, k].max() if maps[n, k].max() > 0 else maps[n, k]
            np.testing.assert_allclose(own, heat, atol=1e-4)


def test_maps_of_alexnet_are_those_of_its_last_convolution() -> None:
    classifier, images = made("alexnet_2012", 95)
    maps = class_maps(classifier, images)
    assert maps.shape == (2, 3, 5, 5)
    assert maps.max() > 0
    expected = captums(classifier, classifier.backbone.features[-2], images)  # type: ignore[index]
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-9)


def test_maps_of_a_vit_are_on_its_patches() -> None:
    classifier, images = made("vit_tiny_patch16_224", 64)
    images = images[..., :40]  # a grid of 4 x 3, the last column padded
    maps = class_maps(classifier, images)
    assert maps.shape == (2, 3, 4, 3)
    assert maps.max() > 0
    # The same by hand, one token after another: the last block with its normalised input given.
    block = classifier.backbone.network.blocks[-1]  # type: ignore[union-attr, index]
    kept: list[Tensor] = []
    block.norm1.register_forward_hook(lambda *call: kept.append(call[2].retain_grad() or call[2]))
    classifier(images)[:, 1].sum().backward()
    tokens, slopes = kept[0][1, 1:], kept[0].grad[1, 1:]
    expected = (tokens @ slopes.mean(dim=0)).relu().reshape(4, 3)
    assert torch.allclose(maps[1, 1], expected, rtol=1e-3, atol=1e-9)


def test_frozen_networks_have_maps_and_gradients_stay_untouched() -> None:
    classifier, images = made("cnn", 64)
    expected = class_maps(classifier, images)
    assert all(p.grad is None for p in classifier.parameters())
    classifier.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(class_maps(classifier, images), expected)
    assert not images.requires_grad
