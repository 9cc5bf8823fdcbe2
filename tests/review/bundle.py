"""A bundle without training: a graph that tells cells by their colour, and pictures for it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from store import CLASSES, contract

from leukoscope.bundle.contract import CONTRACT, GRAPH, seal
from leukoscope.evaluate import novelty
from leukoscope.files import write_json

SIDE = 32
# Class by colour: red, green, blue, grey.
COLOURS = {"neutrophil": (200, 60, 60), "lymphocyte": (60, 200, 60), "monocyte": (60, 60, 200),
           "erythroblast": (90, 90, 90)}  # fmt: skip
_WEIGHT = np.array([[20, -10, -10, 0], [-10, 20, -10, 0], [-10, -10, 20, 0]], np.float32)
_BIAS = np.array([0, 0, 0, 1], np.float32)


def make(folder: Path, name: str = "small", weight: np.ndarray = _WEIGHT) -> Path:
    """Write a bundle of four classes, all synthetic, with heat maps, sets and novelty."""
    folder.mkdir(parents=True)
    graph = _graph(weight)
    (folder / GRAPH).write_bytes(graph)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    means = np.array([np.mean([np.array(COLOURS[n]), [240] * 3], axis=0) for n in CLASSES]) / 255
    features = means[labels] + rng.normal(0, 0.03, (200, 3))
    statistics = novelty.fit(
        features, labels, features[::2], (features @ weight + _BIAS)[::2], components=3
    )
    plain = contract(name).model_dump(mode="json") | {
        "preprocessing": [{"step": "resize", "size": SIDE}],
        "prediction_sets": {"coverage": 0.9, "thresholds": [0.5] * 4, "calibrated_on": 100},
        "novelty": statistics,
        "validation": {"n": 100, "mean_confidence": 0.9, "sd_confidence": 0.1},
    }
    plain["model"]["sha256"] = hashlib.sha256(graph).hexdigest()
    write_json(folder / CONTRACT, seal(plain))
    return folder


def _graph(weight: np.ndarray) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = ["n", 3, SIDE, SIDE]
    constants = {"weight": weight, "bias": _BIAS, "gradient": weight.T[None],
                 "one": np.zeros((1,), np.float32)}  # fmt: skip
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"]),
        helper.make_node(
            "AveragePool", ["images"], ["feature_map"], kernel_shape=[4, 4], strides=[4, 4]
        ),
        # One copy of the gradient an image: zeros of the batch's length are added.
        helper.make_node("ReduceSum", ["logits", "axes"], ["sums"], keepdims=1),
        helper.make_node("Mul", ["sums", "one"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "axes"], ["wide"]),
        helper.make_node("Add", ["wide", "gradient"], ["class_gradient"]),
    ]
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initial.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    outputs = {"logits": ["n", 4], "features": ["n", 3], "feature_map": ["n", 3, 8, 8],
               "class_gradient": ["n", 4, 3]}  # fmt: skip
    made = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        initial,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def cell(label: str = "neutrophil", seed: int = 0, size: int = 64, kind: str = "PNG") -> bytes:
    """A synthetic picture of one cell: a disc in its class's colour on a light ground."""
    image = Image.new("RGB", (size, size), (240, 240, 240))
    rng = np.random.default_rng(seed)
    r = size * (0.42 + 0.02 * rng.random())
    ImageDraw.Draw(image).ellipse(
        [size / 2 - r, size / 2 - r, size / 2 + r, size / 2 + r], fill=COLOURS[label]
    )
    image.putpixel((0, 0), tuple(int(v) for v in rng.integers(200, 240, 3)))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def field(cells: int = 3) -> bytes:
    """A synthetic field of view, 400 x 300 px, with dark nuclei in a row."""
    image = Image.new("RGB", (400, 300), (235, 225, 230))
    draw = ImageDraw.Draw(image)
    for n in range(cells):
        x = 60 + 130 * n
        draw.ellipse([x - 28, 72, x + 28, 128], fill=(205, 180, 215))
        draw.ellipse([x - 20, 80, x + 20, 120], fill=(80, 30, 130))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle; read only."""
    return make(tmp_path_factory.mktemp("bundles") / "small")
