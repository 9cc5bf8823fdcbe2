"""From a torch module to an ONNX graph, checked against the module it came from."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import nn

from leukoscope.compat import onnx_session
from leukoscope.errors import LeukoscopeError
from leukoscope.models.classifier import Classifier, Deployed

OPSET = 18


def classifier_graph(
    classifier: Classifier, size: tuple[int, int], outputs: tuple[str, ...]
) -> bytes:
    """ONNX of a classifier: `images` (n, 3, h, w) float32 normalised, to `outputs`, the first of
    logits, features, feature_map and class_gradient."""
    return to_onnx(Deployed(classifier, len(outputs)), size, outputs)


def to_onnx(module: nn.Module, size: tuple[int, int], outputs: tuple[str, ...]) -> bytes:
    """The module in inference mode as ONNX with any number of images; size is (height, width)."""
    module = module.eval().cpu()
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Its successor takes 14 to 20 times as long on these networks (benchmarks/export.py), and
        # a deprecated exporter of a pinned torch whose graphs are checked is no risk.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.rand(2, 3, *size),),
            written,  # type: ignore[arg-type] # this exporter also takes open files
            input_names=["images"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "n"} for name in ("images", *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = written.getvalue()
    _check_parity(module, graph, size)
    return graph


def _check_parity(module: nn.Module, graph: bytes, size: tuple[int, int]) -> None:
    """Raise LeukoscopeError unless ONNX Runtime gives what torch gives, on fresh input."""
    session = onnx_session(graph)
    images = np.random.default_rng(0).random((3, 3, *size), dtype=np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for name, want, got in zip(
        [o.name for o in session.get_outputs()],
        expected,
        session.run(None, {"images": images}),
        strict=True,
    ):
        wanted = want.detach().numpy()
        scale = float(np.abs(wanted).max()) or 1.0
        error = float(np.abs(wanted - got).max()) / scale
        if not error < 1e-3:
            raise LeukoscopeError(f"ONNX differs from torch in {name!r} by {error:.2g} relative")
