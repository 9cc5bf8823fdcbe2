"""Third-party quirks, each in one place with its reason."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from leukoscope.errors import InputError

_library: Any = None  # keeps the registered schemas alive


def import_timm() -> ModuleType:
    """timm, importable even where torchvision was built for another torch.

    PyPI's torchvision for Linux is built for CUDA torch. Beside a CPU build its compiled operators
    don't load, and `import torchvision` fails because the operator schemas are missing. Declaring
    the two schemas first makes it import; the operators themselves are never called here.
    """
    require("torch", "train")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
        _declare_operators()
        importlib.import_module("torchvision")
    return importlib.import_module("timm")


def _declare_operators() -> None:
    global _library
    import sys

    import torch

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def onnx_session(
    graph: bytes,
    threads: int = 0,
    *,
    one_image: bool = False,
    providers: Sequence[str] = (),
) -> Any:
    """An ONNX Runtime session whose threads (0: one a core) don't spin between calls, which would
    starve those that decode.

    `one_image`: the graph's dimension `n` is 1 in every call, so that shapes computed from it fold
    to constants and paddings into convolutions. `providers` come before the CPU.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if one_image:
        options.add_free_dimension_override_by_name("n", 1)
    asked = [*providers, "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(graph, options, providers=asked)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say in one sentence how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name and problem.name.split(".")[0] != module.split(".")[0]:
            raise
        raise InputError(
            f"This needs the package {module!r}, which is not installed",
            fix=f"Run: pip install 'leukoscope[{extra}]'",
            field=module,
        ) from None
