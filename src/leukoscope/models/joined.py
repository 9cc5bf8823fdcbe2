"""Classical models as ONNX graphs, and such a graph joined to the network that feeds it."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.utils import Extractor
from skl2onnx import convert_sklearn, update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from skl2onnx.operator_converters.random_forest import convert_sklearn_random_forest_classifier
from skl2onnx.shape_calculators.ensemble_shapes import calculate_tree_classifier_output_shapes
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.neighbors import KNeighborsClassifier

from leukoscope.models.classical import FLOOR
from leukoscope.models.ecoc import OutputCodeSVM
from leukoscope.models.forest import Forest

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

OPSET = 18  # that of models.graph, so that the two can be joined


def to_onnx(model: Pipeline, width: int) -> bytes:
    """ONNX of a fitted pipeline: `features` (n, width) float32 to `logits` (n, k) float32.

    Logits are logarithms of the probabilities, clipped below at FLOOR, so their softmax is the
    probabilities. The graph computes in float32 where scikit-learn mostly computes in float64:
    probabilities agree within 1e-4, but for a forest, where a feature within rounding of a
    threshold may take a tree to its other side (1 / trees each), and for neighbours as close.
    """
    last = model[-1]
    options: dict[str, Any] = {"zipmap": False}
    if isinstance(last, SGDClassifier):
        options["raw_scores"] = True
    if isinstance(last, KNeighborsClassifier):
        options["optim"] = "cdist"  # all distances in one product, not row after row
    if isinstance(last, StackingClassifier) and len(last.classes_) == 2:
        model = _with_both_columns(model)
    with warnings.catch_warnings():
        # skl2onnx asks every SVC for the attributes of its deprecated `probability` option.
        warnings.filterwarnings("ignore", "Attribute `prob._` was deprecated", FutureWarning)
        converted = convert_sklearn(
            model,
            initial_types=[("features", FloatTensorType([None, width]))],
            target_opset={"": OPSET, "ai.onnx.ml": 3},
            options={id(model[-1]): options},
        )
    return _with_logits(converted, isinstance(last, SGDClassifier)).SerializeToString()


def _with_logits(graph: onnx.ModelProto, raw_scores: bool) -> onnx.ModelProto:
    """The graph with `logits` as its only output, made from its `probabilities`.

    From `raw_scores` they are made without leaving the logarithms: scores of a sigmoid a class
    may be so low that every sigmoid is 0 in float32.
    """
    lowest = numpy_helper.from_array(np.float32(FLOOR), "lowest_probability")
    nodes = [
        helper.make_node("Clip", ["probability", "lowest_probability"], ["clipped"]),
        helper.make_node("Log", ["clipped"], ["logits"]),
    ]
    if raw_scores:
        nodes = [
            helper.make_node("Neg", ["probabilities"], ["negative_score"]),
            helper.make_node("Softplus", ["negative_score"], ["negative_log_sigmoid"]),
            helper.make_node("Neg", ["negative_log_sigmoid"], ["log_sigmoid"]),
            helper.make_node("Softmax", ["log_sigmoid"], ["probability"], axis=1),
            *nodes,
        ]
    else:
        nodes.insert(0, helper.make_node("Identity", ["probabilities"], ["probability"]))
    (shape,) = [o.type.tensor_type.shape for o in graph.graph.output if o.name == "probabilities"]
    classes = shape.dim[1].dim_value or None
    graph.graph.node.extend(nodes)
    graph.graph.initializer.append(lowest)
    graph.graph.output.append(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])
    )
    for used in graph.opset_import:
        if used.domain == "":
            # skl2onnx states the lowest opset that its own nodes need; the checker knows whether
            # they mean the same in this one.
            used.version = OPSET
    found = Extractor(graph).extract_model(["features"], ["logits"])
    onnx.checker.check_model(found)
    return found


def _with_both_columns(model: Pipeline) -> Pipeline:
    """A copy of a two-class stack whose stacker takes both columns of the forest's probabilities.

    scikit-learn gives it the second alone, skl2onnx both unless every base gives probabilities;
    a weight of 0 for the first makes the two the same.
    """
    model = copy.copy(model)
    stack = copy.copy(model[-1])
    stacker = copy.copy(stack.final_estimator_)
    stacker.coef_ = np.insert(stacker.coef_, -1, 0.0, axis=1)
    stacker.n_features_in_ += 1
    stack.final_estimator_ = stacker
    model.steps = [*model.steps[:-1], (model.steps[-1][0], stack)]
    return model


def join(network: bytes, classical: bytes) -> bytes:
    """`network` (… -> `features` and others) and `classical` (`features` -> `logits`) as one graph.

    Its inputs are the network's, its outputs `logits` and then the network's, `features` among
    them; any number of images. Raises ValueError where the network gives no `features` or already
    gives `logits`, onnx's own errors where the opsets differ.
    """
    first, second = onnx.load_from_string(network), onnx.load_from_string(classical)
    outputs = [output.name for output in first.graph.output]
    if "features" not in outputs or "logits" in outputs:
        raise ValueError(f"the network must give features and no logits, not {outputs}")
    second.ir_version = first.ir_version
    second.graph.ClearField("value_info")  # add_prefix would rename input and output by it
    second = compose.add_prefix(second, "classical/", rename_outputs=False, rename_inputs=False)
    # Names of its own would have a random part, and the same model another hash each time.
    joined = compose.merge_models(
        first, second, [("features", "features")], outputs=["logits", *outputs],
        name=first.graph.name, doc_string="",
    )  # fmt: skip
    logits_first = sorted(joined.graph.output, key=lambda output: output.name != "logits")
    joined.graph.ClearField("output")
    joined.graph.output.extend(logits_first)
    return joined.SerializeToString()


def _machine_shapes(operator: Any) -> None:
    """skl2onnx's shape calculator of OutputCodeSVM: labels (n,), scores (n, k), k = 2: (n, 1)."""
    n, classes = operator.inputs[0].get_first_dimension(), len(operator.raw_operator.classes_)
    operator.outputs[0].type = Int64TensorType([n])
    operator.outputs[1].type = FloatTensorType([n, classes if classes > 2 else 1])


def _convert_machine(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's converter of OutputCodeSVM: its decision_function in float32, and its argmax.

    The kernel exp(-γ|x - v|²) is one product of matrices; features are centred at the mean of the
    support vectors first, so that the square's three terms don't cancel.
    """
    svm: OutputCodeSVM = operator.raw_operator
    centre = svm.support_vectors_.mean(axis=0, dtype=np.float64)
    vectors = svm.support_vectors_ - centre
    weights = 2 * np.abs(svm.code_).sum(axis=1, dtype=float)
    (features,) = operator.input_full_names
    labels, scores = operator.output_full_names

    def constant(value: np.ndarray, kind: Any = np.float32) -> str:
        name = scope.get_unique_variable_name("svm")
        tensor = numpy_helper.from_array(np.asarray(value, dtype=kind), name)
        container.add_initializer(name, None, None, tensor)
        return name

    def node(kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        output = to or scope.get_unique_variable_name(f"svm_{kind}")
        name = scope.get_unique_operator_name(f"svm_{kind}")
        container.add_node(kind, list(inputs), output, name=name, op_version=OPSET, **attributes)
        return output

    one = constant(np.ones(1))
    x = node("Sub", features, constant(centre))
    squared = node("ReduceSumSquare", x, constant(np.ones(1), np.int64), keepdims=1)
    products = node(
        "Gemm",
        x,
        constant(vectors),
        constant(-svm.gamma_ * (vectors**2).sum(axis=1)),
        alpha=2 * svm.gamma_,
        transB=1,
    )
    exponent = node("Sub", products, node("Mul", squared, constant(np.array([svm.gamma_]))))
    kernel = node("Exp", exponent)
    margins = node("Gemm", kernel, constant(svm.dual_coef_), constant(svm.intercept_), transB=1)
    loss_above = node("Relu", node("Sub", one, margins))
    loss_below = node("Relu", node("Add", one, margins))
    above = node("MatMul", loss_above, constant((svm.code_ > 0).T / -weights))
    below = node("MatMul", loss_below, constant((svm.code_ < 0).T / -weights))
    each = node("Add", above, below)
    if len(svm.classes_) > 2:
        node("Identity", each, to=scores)
    else:
        node("MatMul", each, constant(np.array([[-1], [1]])), to=scores)
    best = node("ArgMax", each, axis=1, keepdims=0)
    node("Gather", constant(svm.classes_, np.int64), best, to=labels)


update_registered_converter(
    OutputCodeSVM,
    "LeukoscopeOutputCodeSVM",
    _machine_shapes,
    _convert_machine,
    options={"raw_scores": [True, False], "zipmap": [False]},
)
update_registered_converter(
    Forest,
    "LeukoscopeForest",
    calculate_tree_classifier_output_shapes,
    convert_sklearn_random_forest_classifier,
    options={
        name: [True, False]
        for name in (
            "zipmap",
            "raw_scores",
            "nocl",
            "output_class_labels",
            "decision_path",
            "decision_leaf",
        )
    },
)
