"""An fp32 graph as an int8 one: static quantisation of the backbone, its biases corrected.

Weights are symmetric int8 a channel, activations uint8 a tensor, ranges the extremes over the
calibration images, written as QDQ nodes that ONNX Runtime and OpenVINO both run in integers. The
head and what heat maps need stay in floats: they cost nothing. All eight bits are used, since seven
cost MobileNetV2 more than they may; processors without VNNI may then saturate where they add up two
products in sixteen bits, so a bundle carries an answer that its reader repeats (`rehearsal`).

Rounding a channel's weights shifts its output's mean, and in depthwise networks these shifts add up
to most of the loss. Each bias takes its own shift back, computed from the mean input (empirical
bias correction: Nagel et al. 2019, doi 10.1109/ICCV.2019.00141, section 4.2). Needs the package
onnx, not torch.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from leukoscope.compat import onnx_session

LEVELS = 127  # of a symmetric int8 weight on either side of 0
_QUANTISED = ("Conv", "Add", "Clip", "Relu", "MaxPool", "AveragePool")
_FLOAT = onnx.TensorProto.FLOAT


def quantised(graph: bytes, images: np.ndarray, *, spared: int = 0) -> bytes:
    """The int8 graph of an fp32 one with the same inputs and outputs.

    images: (n, 3, h, w) float32 prepared calibration images. spared: how many of the first
    convolutions stay in floats; they see the finest detail and suffer most.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = simplified(graph, images[:3])
    body = _before(model, "features")
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    outside = [node.name for node in model.graph.node if node.name not in body]
    floats = {*convolutions[:spared], *outside}
    correct_biases(model, images, set(convolutions) - floats)
    with tempfile.TemporaryDirectory() as folder, _silent():
        written = Path(folder) / "int8.onnx"
        quantize_static(
            model, written, _Calibration(images), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=sorted(floats),
        )  # fmt: skip
        return centred(written.read_bytes(), graph, images)


def centred(int8: bytes, graph: bytes, images: np.ndarray) -> bytes:
    """The int8 graph with the mean difference of its logits from the fp32 graph's taken out.

    Rounded activations, too, shift what comes out of a clipping layer. Where the logits aren't
    those of a last dense layer with a bias, the graph stays as it was.
    """
    model = onnx.load_from_string(int8)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    last = next((node for node in model.graph.node if "logits" in node.output), None)
    if last is None or last.op_type != "Gemm" or len(last.input) < 3:
        return int8
    tensor = weights.get(last.input[2])
    if tensor is None:
        return int8
    own, wanted = (onnx_session(g, one_image=True) for g in (int8, graph))
    difference = [
        wanted.run(["logits"], {"images": i})[0][0] - own.run(["logits"], {"images": i})[0][0]
        for i in np.split(images, len(images))
    ]
    bias = numpy_helper.to_array(tensor) + np.mean(difference, axis=0)
    tensor.CopyFrom(numpy_helper.from_array(bias.astype(np.float32), tensor.name))
    return model.SerializeToString()


def simplified(graph: bytes, images: np.ndarray) -> onnx.ModelProto:
    """The graph with everything folded that is constant for one image, for any number of them.

    Shapes that an exporter computes at run time stand between a convolution and what follows it,
    and would be quantised as if they were layers. Where an answer of `images` (n, 3, h, w) differs
    afterwards, the graph stays as it was.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_free_dimension_override_by_name("n", 1)
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(written)
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        model = onnx.load(written)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    del model.graph.value_info[:]  # these still say one image
    _name_nodes(model)
    try:
        found = onnx_session(model.SerializeToString()).run(None, {"images": images})
        wanted = onnx_session(graph).run(None, {"images": images})
        same = all(
            np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(found, wanted, strict=True)
        )
    except Exception:  # noqa: BLE001 - ONNX Runtime's share no class of their own
        same = False
    if not same:
        model = onnx.load_from_string(graph)
        _name_nodes(model)
    return model


def _name_nodes(model: onnx.ModelProto) -> None:
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def correct_biases(model: onnx.ModelProto, images: np.ndarray, chosen: Set[str]) -> None:
    """Round the chosen convolutions' weights to int8 levels, and take the mean shift out of the
    biases.

    Changes `model` in place; weights stay floats, which `quantize_static` rounds to just the same
    levels. A convolution without a bias stays as it is, as nothing could take its shift.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name in chosen
        and len(node.input) == 3
        and set(node.input[1:]) <= set(weights)
    ]
    means = _means(model, list(dict.fromkeys(node.input[0] for node in nodes)), images)
    for node in nodes:
        _, name, bias_name = node.input
        weight, bias = (numpy_helper.to_array(weights[n]) for n in (name, bias_name))
        most = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        step = np.where(most > 0, most / LEVELS, 1).reshape(-1, *[1] * (weight.ndim - 1))
        rounded = (np.rint(weight / step) * step).astype(np.float32)
        lost = (weight - rounded).reshape(*weight.shape[:2], -1).sum(axis=2)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        inputs = np.repeat(means[node.input[0]].reshape(groups, -1), len(weight) // groups, axis=0)
        shift = (lost * inputs).sum(axis=1)
        weights[name].CopyFrom(numpy_helper.from_array(rounded, name))
        weights[bias_name].CopyFrom(
            numpy_helper.from_array((bias + shift).astype(np.float32), bias_name)
        )


def _means(model: onnx.ModelProto, names: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of each named tensor (n, c, h, w) a channel, (c,), over images and positions."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inside = [name for name in names if name != "images"]
    del watched.graph.output[:]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, _FLOAT, None) for name in inside
    )
    sums = {name: np.zeros(1) for name in names}
    session = onnx_session(watched.SerializeToString()) if inside else None
    for image in images:
        said = session.run(inside, {"images": image[None]}) if session else []
        for name, value in zip([*inside, "images"], [*said, image[None]], strict=True):
            if name in sums:
                sums[name] = sums[name] + value[0].mean(axis=(1, 2), dtype=np.float64)
    return {name: total / len(images) for name, total in sums.items()}


def _before(model: onnx.ModelProto, output: str) -> set[str]:
    """Names of the nodes that an output depends on."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting, found = [output], set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += list(node.input)
    return found


class _Calibration:
    """onnxruntime's CalibrationDataReader over prepared images, one at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image[None]}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The quantiser logs advice to preprocess, which `simplified` has done, to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
