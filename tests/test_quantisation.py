"""int8: refused where it costs accuracy, otherwise calibrated to its own answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from commands import Made, done, make, no_parts, refused
from leukoscope.bundle.contract import seal
from leukoscope.bundle.inference import Reader
from leukoscope.bundle.quantisation import correct_biases, quantised, simplified
from leukoscope.compat import onnx_session
from leukoscope.errors import InputError
from leukoscope.models.graph import to_onnx
from leukoscope.recipes import quantised as judged


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def bundle(small: Made) -> Path:
    """An int8 bundle of a tiny run, which random-like answers must not refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "COST", 1.0)
        done("export", small.run, "-o", small.folder / "int8", "--precision", "int8")
    return small.folder / "int8"


class Depthwise(nn.Module):
    """Expansion, depthwise and projection, as MobileNetV2's blocks are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 32, 1), nn.ReLU6(),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).mean(dim=(2, 3))


def graph_and_images() -> tuple[bytes, np.ndarray]:
    torch.manual_seed(0)
    graph = to_onnx(Depthwise(), (32, 32), ("features",))
    return graph, np.random.default_rng(0).random((24, 3, 32, 32), np.float32) + 0.5


def run(graph: bytes, images: np.ndarray) -> np.ndarray:
    return onnx_session(graph, 1).run(["features"], {"images": images})[0]


def test_int8_answers_nearly_as_fp32() -> None:
    graph, images = graph_and_images()
    int8 = quantised(graph, images)
    kinds = {tensor.data_type for tensor in onnx.load_from_string(int8).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert len(int8) < len(graph) or len(graph) < 50_000
    wanted, found = run(graph, images), run(int8, images)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_corrected_biases_take_the_mean_shift_back() -> None:
    graph, images = graph_and_images()
    model = simplified(graph, images[:3])
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    correct_biases(model, images, {node.name for node in model.graph.node})
    rounded = {t.name: t for t in model.graph.initializer}
    for tensor in plain.graph.initializer:  # the same weights, without their biases
        if len(tensor.dims) == 4:
            tensor.CopyFrom(rounded[tensor.name])
    wanted = run(graph, images)
    shift = [
        np.abs((run(m.SerializeToString(), images) - wanted).mean(axis=0)).mean()
        for m in (plain, model)
    ]
    assert shift[1] < shift[0] / 2


def test_simplified_graphs_take_any_number_of_images() -> None:
    graph, images = graph_and_images()
    folded = simplified(graph, images[:3]).SerializeToString()
    np.testing.assert_allclose(run(folded, images), run(graph, images), rtol=1e-4, atol=1e-5)


def test_an_int8_bundle_is_whole(small: Made, bundle: Path, tmp_path: Path) -> None:
    contract: dict[str, Any] = json.loads((bundle / "contract.json").read_text())
    fp32: dict[str, Any] = json.loads((small.bundle / "contract.json").read_text())
    assert contract["model"]["precision"] == "int8"
    assert contract["validation"]["int8_macro_f1_cost"] <= 1
    assert contract["validation"]["majority"] == fp32["validation"]["majority"]
    sets = contract["prediction_sets"]
    assert len(sets["thresholds"]) == len(contract["classes"])
    assert sets["calibrated_on"] == contract["validation"]["n"]
    assert contract["novelty"]["threshold"] != fp32["novelty"]["threshold"]
    images = sorted((small.smear / "images").rglob("*.*g"))[:4]
    done("predict", bundle, *images, "-o", tmp_path / "said.csv")
    done("explain", bundle, *images[:1], "-o", tmp_path / "maps")
    assert list((tmp_path / "maps").glob("*.png")), "heat maps go on working"


def test_engines_agree_on_int8(small: Made, bundle: Path) -> None:
    pytest.importorskip("openvino", reason="NO OPENVINO: int8 was tested by ONNX Runtime alone")
    paths = sorted((small.smear / "images").rglob("*.*g"))[:6]
    said = [
        np.concatenate([a.probs for _, a in Reader.load(bundle, engine=name).read(paths)])
        for name in ("onnxruntime", "openvino")
    ]
    np.testing.assert_allclose(said[1], said[0], atol=0.05)


def test_int8_that_costs_too_much_is_refused(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.89, 0.88, 0.87])
    monkeypatch.setattr(judged, "macro_f1", lambda *_: next(scores))
    said = refused("export", small.run, "-o", tmp_path / "int8", "--precision", "int8")
    assert "int8 costs 1.0 points of macro F1" in said
    assert "allowed: 0.5" in said
    assert not (tmp_path / "int8" / "model.onnx").exists()
    no_parts(tmp_path)


def test_the_first_convolutions_are_spared_where_that_helps(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, seen = iter([0.9, 0.8, 0.9]), []
    whole = judged.quantised
    monkeypatch.setattr(judged, "macro_f1", lambda *_: next(scores))
    monkeypatch.setattr(
        judged, "quantised", lambda *a, spared: seen.append(spared) or whole(*a, spared=spared)
    )
    done("export", small.run, "-o", tmp_path / "int8", "--precision", "int8")
    assert seen == list(judged.SPARED[:2])


def test_an_unknown_precision_is_refused(small: Made, tmp_path: Path) -> None:
    said = refused("export", small.run, "-o", tmp_path / "b", "--precision", "int4")
    assert "int8" in said
    assert not (tmp_path / "b").exists()


def test_int8_needs_the_run_s_images(small: Made, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(small.run, tmp_path / "run")
    stated = json.loads((tmp_path / "run" / "environment.json").read_text())
    stated["index"]["path"] = str(tmp_path / "gone.parquet")
    (tmp_path / "run" / "environment.json").write_text(json.dumps(stated))
    said = refused("export", tmp_path / "run", "-o", tmp_path / "b", "--precision", "int8")
    assert "aren't where it says" in said


def test_a_bundle_that_this_processor_computes_otherwise_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    there = shutil.copytree(bundle, tmp_path / "bundle")
    Reader.load(there)
    stated = json.loads((there / "contract.json").read_text())
    stated["model"]["rehearsal"] = [x + 1 for x in stated["model"]["rehearsal"]]
    (there / "contract.json").write_text(json.dumps(seal(stated)))
    with pytest.raises(InputError, match="otherwise than where it was judged"):
        Reader.load(there)


def test_sets_calibrated_out_of_fold_stay(small: Made, tmp_path: Path) -> None:
    run = shutil.copytree(small.run, tmp_path / "run")
    path = run / "model" / "contract.json"
    stated = json.loads(path.read_text())
    stated["prediction_sets"] |= {"out_of_fold": 200, "calibrated_on": 240}
    path.write_text(json.dumps(seal(stated)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "COST", 1.0)
        done("export", run, "-o", tmp_path / "int8", "--precision", "int8")
    found = json.loads((tmp_path / "int8" / "contract.json").read_text())
    assert found["prediction_sets"] == stated["prediction_sets"]
    assert found["temperature"] == stated["temperature"]


def test_spared_convolutions_keep_their_weights() -> None:
    graph, images = graph_and_images()
    model = simplified(graph, images[:3])
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    first, *rest = [n for n in model.graph.node if n.op_type == "Conv"]
    correct_biases(model, images, {node.name for node in rest})
    after = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert all((before[name] == after[name]).all() for name in first.input[1:])
    assert (before[rest[0].input[1]] != after[rest[0].input[1]]).any()
