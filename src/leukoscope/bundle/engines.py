"""What runs a bundle's graph: ONNX Runtime, on a GPU where it sees one, or OpenVINO.

On a CPU every engine runs one image at a time on one core, called from as many threads as there are
cores: nothing is handed from thread to thread, a core's cache holds one image's activations, and no
image's answer depends on its neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.bundle.contract import OUTPUTS
from leukoscope.compat import onnx_session, require
from leukoscope.errors import UnknownNameError
from leukoscope.files import write_json
from leukoscope.parallel import WORKERS

NAMES = ("auto", "onnxruntime", "openvino", "openvino-bf16")
"""`openvino-bf16` rounds weights and activations to bfloat16, so it is never chosen by `auto`."""
MANY = 500  # images from which it pays to measure which engine is the fastest here
TOLERANCE = 1e-3
"""How far an engine's fp32 logits may be from ONNX Runtime's, relative to the largest."""
_GPU = ("CUDAExecutionProvider", "ROCMExecutionProvider")
_GPU_BATCH = 16
_RACE = 0.3  # seconds

Run = Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """A loaded graph. `run` takes float32 (n, 3, h, w) and names of outputs, from any thread.

    `batch`: how many images a call should be given.
    """

    name: str
    outputs: tuple[str, ...]
    batch: int
    run: Run


def open_engine(graph: bytes, name: str = "onnxruntime") -> Engine:
    """Load a graph into an engine of NAMES but `auto`.

    Raises UnknownNameError, InputError where the engine isn't installed, and whatever the engine
    raises for a graph that is none.
    """
    if name == "onnxruntime":
        return _onnxruntime(graph)
    if name in NAMES[2:]:
        return _openvino(graph, "bf16" if name.endswith("bf16") else "f32")
    raise UnknownNameError("engine", name, NAMES[1:], field="engine")


def choose(graph: bytes, size: tuple[int, int], precision: str, images: int) -> str:
    """The engine for so many images: the fastest by measurement where it pays, which is kept.

    `size`: (height, width) of the input; `precision`: that of the contract.
    """
    # An int8 bundle was judged and calibrated with ONNX Runtime; another engine's rounding differs.
    if images < MANY or precision != "fp32" or find_spec("openvino") is None or _gpu():
        return "onnxruntime"
    kept = _kept(graph)
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))["engine"]
        return found if found in NAMES[1:3] else "onnxruntime"
    except (OSError, ValueError, KeyError, TypeError):
        rates = race(graph, size)
    fastest = max(rates, key=lambda name: rates[name])
    with contextlib.suppress(Exception):  # measured again next time; answers don't hang on a cache
        write_json(kept, {"engine": fastest, "images_per_second": rates})
    return fastest


def race(graph: bytes, size: tuple[int, int]) -> dict[str, float]:
    """Images a second of each engine that answers as ONNX Runtime does, on all cores."""
    images = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
    rates: dict[str, float] = {}
    wanted = np.empty(0)
    for name in NAMES[1:3]:
        try:
            engine = open_engine(graph, name)
            said = engine.run(images, ("logits",))[0]
        except Exception:
            if name == "onnxruntime":
                raise
            continue
        wanted = wanted if wanted.size else said
        if np.abs(said - wanted).max() <= TOLERANCE * (np.abs(wanted).max() or 1.0):
            rates[name] = _rate(engine, images)
    return rates


def _rate(engine: Engine, images: np.ndarray) -> float:
    until = time.perf_counter() + _RACE

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < until:
            engine.run(images, ("logits", "features"))
            done += 1
        return done

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(work, range(WORKERS))) / _RACE


def _gpu() -> list[str]:
    import onnxruntime

    return [name for name in _GPU if name in onnxruntime.get_available_providers()]


def _onnxruntime(graph: bytes) -> Engine:
    import onnxruntime

    gpu = _gpu()
    if gpu:
        session = onnx_session(graph, providers=gpu)
        if (
            session.get_providers()[0] in gpu
        ):  # it falls back to the CPU where the driver is missing
            lock = threading.Lock()

            def together(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
                with lock:
                    return session.run(list(outputs), {"images": images})

            return Engine("onnxruntime", _names(session), _GPU_BATCH, together)
    session = onnx_session(graph, threads=1, one_image=True)
    only = onnxruntime.RunOptions()
    only.only_execute_path_to_fetches = True  # heat maps' outputs cost a tenth of the whole

    def each(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        asked = list(outputs)
        return _joined([session.run(asked, {"images": image[None]}, only) for image in images])

    return Engine("onnxruntime", _names(session), 1, each)


def _names(session: Any) -> tuple[str, ...]:
    return tuple(output.name for output in session.get_outputs())


@functools.cache
def _openvino_core() -> tuple[Any, Any]:
    """OpenVINO and its core, kept for as long as the process lives: with the last core it unloads
    its plugin, and threads of it that still wait then crash the process."""
    openvino = require("openvino", "fast")
    return openvino, openvino.Core()


def _openvino(graph: bytes, precision: str) -> Engine:
    openvino, core = _openvino_core()
    model = core.read_model(graph)
    _, *rest = model.input(0).partial_shape
    model.reshape(openvino.PartialShape([openvino.Dimension(1), *rest]))
    settings = {
        "INFERENCE_NUM_THREADS": WORKERS, "NUM_STREAMS": WORKERS,
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    # A tensor may have several names, and only the contract's are known outside.
    names = tuple(min(output.get_names(), key=_order) for output in model.outputs)
    lock = threading.Lock()

    @functools.cache
    def compiled(outputs: tuple[str, ...]) -> Any:
        """The graph cut down to what these outputs need: heat maps' cost a tenth of the whole."""
        results = [model.get_results()[names.index(name)] for name in outputs]
        return core.compile_model(openvino.Model(results, model.get_parameters()), "CPU", settings)

    own = threading.local()

    def each(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        asked = tuple(outputs)
        requests = vars(own).setdefault("requests", {})
        if asked not in requests:
            with lock:  # compiled once, not by every thread
                requests[asked] = compiled(asked).create_infer_request()
        request, said = requests[asked], []
        for image in images:
            request.infer({0: image[None]}, share_inputs=True)
            said.append([request.get_output_tensor(p).data.copy() for p in range(len(asked))])
        return _joined(said)

    name = "openvino-bf16" if precision == "bf16" else "openvino"
    return Engine(name, names, 1, each)


def _order(name: str) -> tuple[bool, str]:
    return name not in OUTPUTS, name


def _joined(said: list[list[np.ndarray]]) -> list[np.ndarray]:
    if len(said) == 1:
        return said[0]
    return [np.concatenate(parts) for parts in zip(*said, strict=True)]


def _kept(graph: bytes) -> Path:
    """Where the choice for this graph on this machine with these engines is kept."""
    import platformdirs

    about = hashlib.sha256(graph)
    for part in (_version("onnxruntime"), _version("openvino"), _processor(), str(WORKERS)):
        about.update(part.encode())
    given = os.environ.get("LEUKOSCOPE_CACHE")
    folder = Path(given) if given else Path(platformdirs.user_cache_dir("leukoscope"))
    return folder / "engines" / f"{about.hexdigest()[:24]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), "")
