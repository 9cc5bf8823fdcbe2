"""Grad-CAM by torch, for networks whose map in the ONNX graph is a point, and as a check."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leukoscope.models.backbones import ClassToken, FullyConnected
from leukoscope.models.classifier import Classifier


@torch.enable_grad()
def class_maps(
    classifier: Classifier, images: Tensor, classes: Sequence[int] | None = None
) -> Tensor:
    """Where the evidence for `classes` (default all) lies: (n, classes, h, w), not negative, of no
    scale.

    Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) of the logits at the network's last spatial map:
    of a ViT its patch tokens as they enter the last block's attention, on the grid of patches; of
    VGG and AlexNet the last convolution's map after its ReLU; of all others the feature map, where
    this is what `explain.gradcam.heat_map` makes of the graph's outputs, before its scaling.
    The classifier is left in inference mode, its gradients untouched.
    """
    classifier.eval()
    seen: list[Tensor] = []
    handle = _target(classifier.backbone).register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        # So that there are gradients where all parameters are frozen too.
        logits = classifier(images.detach().clone().requires_grad_())
    finally:
        handle.remove()
    (found,) = seen
    maps = []
    for k in range(logits.shape[1]) if classes is None else classes:
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), found, retain_graph=True)
        values, slopes = (_spatial(classifier.backbone, part, images) for part in (found, gradient))
        maps.append((values * slopes.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu())
    return torch.stack(maps, dim=1).detach()


def _target(backbone: nn.Module) -> nn.Module:
    """The module whose output is the last spatial map."""
    if isinstance(backbone, FullyConnected):
        return backbone.features[-2]
    if isinstance(backbone, ClassToken):
        return backbone.network.blocks[-1].norm1
    return backbone


def _spatial(backbone: nn.Module, values: Tensor, images: Tensor) -> Tensor:
    """(n, d, h, w): a ViT's (n, tokens, d) without the class token on the grid of patches."""
    if not isinstance(backbone, ClassToken):
        return values
    return values[:, 1:].transpose(1, 2).unflatten(2, backbone.grid(images))
