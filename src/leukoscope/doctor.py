"""What works on this machine, with the fix for what doesn't."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

Check = dict[str, Any]


def doctor() -> list[Check]:
    """A list of {name, works, detail}; `detail` is the version, or the fix."""
    return [
        _package("numpy", ""),
        _package("onnxruntime", ""),
        _package("torch", "train"),
        _torchvision(),
        _gpu(),
        _package("openvino", "fast"),
        _package("simplejpeg", ""),
        _weights(),
        _cores(),
    ]


def _package(name: str, extra: str) -> Check:
    try:
        module = importlib.import_module(name)
    except ImportError as problem:
        wanted = f"leukoscope[{extra}]" if extra else "leukoscope"
        return _check(name, False, f"{problem}. Run: pip install '{wanted}'")
    return _check(name, True, str(getattr(module, "__version__", "")))


def _torchvision() -> Check:
    from leukoscope.compat import import_timm
    from leukoscope.errors import InputError

    try:
        return _check("timm", True, import_timm().__version__)
    except (InputError, RuntimeError) as problem:
        return _check("timm", False, str(problem))


def _gpu() -> Check:
    try:
        import torch
    except ImportError:
        return _check("GPU", False, "torch is missing")
    if not torch.cuda.is_available():
        return _check("GPU", False, "torch sees none; everything works on the CPU, slower")
    return _check("GPU", True, torch.cuda.get_device_name())


def _weights() -> Check:
    """Weights that timm has downloaded already; nothing is fetched to find out."""
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    found = sorted(p.name.removeprefix("models--timm--") for p in cache.glob("models--timm--*"))
    if found:
        return _check("ImageNet weights", True, f"downloaded: {', '.join(found)}")
    return _check(
        "ImageNet weights",
        False,
        "none downloaded yet: --weights auto does it once online; or give --weights PATH",
    )


def _cores() -> Check:
    return _check("processor", True, f"{os.cpu_count()} cores")


def _check(name: str, works: bool, detail: str) -> Check:
    return {"name": name, "works": works, "detail": detail}
