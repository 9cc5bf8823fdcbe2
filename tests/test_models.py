"""Backbones, heads, weights with their contract, and the ONNX graph that is deployed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.files import sha256_of, write_json
from leukoscope.models import weights as model_weights
from leukoscope.models.backbones import backbones, build_backbone, check_architecture
from leukoscope.models.classifier import Deployed, build, build_head, head_gradient, seeded
from leukoscope.models.graph import OUTPUTS, classifier_graph, session_of
from leukoscope.models.weights import Weights, resolve
from leukoscope.recipes.schema import resolve as resolve_recipe

HEAD = resolve_recipe("lightweight-cnn").model.head
NONE = resolve("none", "cnn")


@pytest.mark.parametrize("name", [*backbones, "mobilenetv2_100", "efficientnet_b0"])
def test_backbones_give_the_width_they_state(name: str) -> None:
    backbone, width = build_backbone(name, NONE)
    with torch.inference_mode():
        feature_map = backbone.eval()(torch.rand(2, 3, 64, 64))
    assert feature_map.shape == (2, width, 2, 2)


def test_the_papers_head_has_0165_million_parameters() -> None:
    head = build_head(HEAD, 1280, 5)
    assert sum(p.numel() for p in head.parameters()) == 1280 * 128 + 128 + 128 * 5 + 5 == 164_613
    assert [type(layer) for layer in head] == [
        nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear,
    ]  # fmt: skip


def test_building_is_a_function_of_the_seed_and_leaves_torchs_generator_alone() -> None:
    torch.random.fork_rng()
    before = torch.random.get_rng_state()
    one = build("cnn", HEAD, 3, NONE, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    again = build("cnn", HEAD, 3, NONE, seed=1).state_dict()
    other = build("cnn", HEAD, 3, NONE, seed=2).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["head.1.weight"], other["head.1.weight"])


def test_seeded_draws_depend_on_every_part_of_the_key() -> None:
    draws = []
    for key in ((0, 1), (1, 0), (0, 1)):
        with seeded(*key):
            draws.append(float(torch.rand(())))
    assert draws[0] == draws[2] != draws[1]


def test_the_head_gradient_equals_autograd() -> None:
    with seeded(3):
        head = build_head(HEAD, 12, 4).eval()
        features = torch.randn(5, 12, requires_grad=True)
    logits = head(features)
    expected = torch.stack(
        [torch.autograd.grad(logits[:, k].sum(), features, retain_graph=True)[0] for k in range(4)],
        dim=1,
    )
    assert torch.allclose(head_gradient(head, features), expected, atol=1e-7)


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, bytes]:
    classifier = build("cnn", HEAD, 3, NONE, seed=0).eval()
    return classifier, classifier_graph(classifier, (32, 32))


def test_the_graph_equals_the_module_for_any_number_of_images(
    tiny: tuple[nn.Module, bytes],
) -> None:
    classifier, graph = tiny
    session = session_of(graph)
    assert [output.name for output in session.get_outputs()] == list(OUTPUTS)
    for n in (1, 7):
        images = np.random.default_rng(n).random((n, 3, 32, 32), dtype=np.float32)
        got = session.run(None, {"images": images})
        with torch.inference_mode():
            expected = Deployed(classifier)(torch.from_numpy(images))
        assert [value.shape for value in got] == [tuple(value.shape) for value in expected]
        for value, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, want.numpy(), rtol=1e-3, atol=1e-4)


def test_unknown_architectures_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="mobilenetv2_1"):
        check_architecture("mobilenetv2_10")


def test_weights_from_scratch_take_no_file() -> None:
    with pytest.raises(InputError, match="from scratch"):
        build_backbone("cnn", Weights("auto", NONE.input, {}))


def test_the_given_weights_carry_their_settings(mobilenet_weights: Path) -> None:
    found = resolve(str(mobilenet_weights), "mobilenetv2_100")
    assert found.arguments == {"bn_eps": 1e-3, "pad_type": "same"}
    assert found.input.mean == found.input.std == (0.5, 0.5, 0.5)
    backbone, width = build_backbone("mobilenetv2_100", found)
    assert width == 1280
    batch_norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert batch_norm.eps == 1e-3
    assert resolve(str(mobilenet_weights.parent), "mobilenetv2_100") == found


def _copy(source: Path, folder: Path, **changes: object) -> Path:
    """The weights' contract with changes, beside a stand-in of a few bytes."""
    target = folder / source.name
    target.write_bytes(b"not the weights")
    contract = json.loads(source.with_suffix(".json").read_text())
    write_json(target.with_suffix(".json"), contract | {"sha256": sha256_of(target)} | changes)
    return target


def test_weights_without_a_sound_contract_are_refused(
    mobilenet_weights: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copy(mobilenet_weights, bare)
    with pytest.raises(InputError, match=r"no contract.*Write bare.json"):
        resolve(str(bare), "mobilenetv2_100")
    with pytest.raises(InputError, match="this arm needs efficientnet_b0"):
        resolve(str(mobilenet_weights), "efficientnet_b0")
    wrong = _copy(mobilenet_weights, tmp_path, sha256="0" * 64)
    with pytest.raises(InputError, match="SHA-256"):
        resolve(str(wrong), "mobilenetv2_100")
    with pytest.raises(InputError, match="no weights contract: input"):
        resolve(str(_copy(mobilenet_weights, tmp_path, input={"size": 3})), "mobilenetv2_100")
    broken = resolve(str(_copy(mobilenet_weights, tmp_path)), "mobilenetv2_100")
    with pytest.raises(InputError, match="no safetensors file"):
        build_backbone("mobilenetv2_100", broken)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "weights.bin"])
def test_pickled_weights_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(InputError, match="pickled weights are never loaded"):
        model_weights.resolve(str(tmp_path / name), "mobilenetv2_100")
