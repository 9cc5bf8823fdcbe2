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
TOLERANCE = 1e-3


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
    """Raise LeukoscopeError unless ONNX Runtime gives what torch gives, on fresh input.

    Where rounding errors grow in the network itself (channels of next to no variance, say), ONNX
    Runtime must be as near to the result in double precision as torch is, within a factor of ten.
    """
    session = onnx_session(graph)
    images = np.random.default_rng(0).random((3, 3, *size), dtype=np.float32)
    found = session.run(None, {"images": images})
    wanted = _answers(module, torch.from_numpy(images))
    names = [output.name for output in session.get_outputs()]
    errors = [_error(a, b) for a, b in zip(found, wanted, strict=True)]
    if max(errors) < TOLERANCE:
        return
    exact = _answers(module.double(), torch.from_numpy(images).double())
    module.float()
    for name, got, own, true in zip(names, found, wanted, exact, strict=True):
        if not _error(got, true) < max(TOLERANCE, 10 * _error(own, true)):
            raise LeukoscopeError(
                f"ONNX differs from torch in {name!r} by {_error(got, own):.2g} relative"
            )


def _answers(module: nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        said = module(images)
    # A view of a parameter asks for a gradient even here.
    return [part.detach().numpy() for part in (said if isinstance(said, tuple) else (said,))]


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(wanted - got).max()) / (float(np.abs(wanted).max()) or 1.0)
