"""Backbones, heads, weights with their contract, and the ONNX graph that is deployed."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leukoscope.bundle.contract import OUTPUTS
from leukoscope.compat import import_timm, onnx_session
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.files import sha256_of, write_json
from leukoscope.models import weights as model_weights
from leukoscope.models.backbones import (
    ConvolutionalNetwork,
    Enlarging,
    adaptive_mean,
    backbones,
    build_backbone,
    check_architecture,
    cubic_resampling,
)
from leukoscope.models.classifier import Deployed, build, build_head, head_gradient, seeded
from leukoscope.models.graph import classifier_graph
from leukoscope.models.weights import BODIES, TORCHVISION, Weights, fits, resolve
from leukoscope.recipes.schema import resolve as resolve_recipe

HEAD = resolve_recipe("lightweight-cnn").model.head
NONE = resolve("none", "cnn")
import_timm()  # makes torchvision importable
models = importlib.import_module("torchvision.models")


NETWORKS = {  # every network that a paper names: the width of its map, its side at 224 px
    "cnn": (256, 7),
    "alexnet": (4096, 1),
    "alexnet_2012": (4096, 1),
    "retinanet": (256, 28),
    "centernet": (64, 56),
    "convnext_base": (1024, 7),
    "convnext_base.fb_in1k": (1024, 7),
    "convnext_base.tv_in1k": (1024, 7),
    "convnext_tiny": (768, 7),
    "resnet50": (2048, 7),
    "resnet101": (2048, 7),
    "densenet121": (1024, 7),
    "vit_base_patch16_224": (768, 1),
    "efficientnet_b0": (1280, 7),
    "efficientnet_b4": (1792, 7),
    "mobilenetv2_100": (1280, 7),
    "vgg16": (4096, 1),
    "legacy_xception": (2048, 7),
    "inception_resnet_v2": (1536, 5),
}


def test_every_network_of_our_own_is_in_the_table() -> None:
    assert {*backbones} < {*NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_backbones_take_every_size_from_32_px_and_give_the_width_they_state(name: str) -> None:
    with torch.device("meta"):  # shapes alone: nothing is computed
        backbone, width = build_backbone(name, resolve("none", name))
        backbone.eval()
        shapes = {
            size: tuple(backbone(torch.empty(2, 3, *size)).shape)
            for size in ((32, 32), (33, 47), (144, 144), (224, 224), (227, 227))
        }
    assert all(shape[:2] == (2, width) and min(shape) > 0 for shape in shapes.values())
    assert (width, shapes[224, 224][3]) == NETWORKS[name]


def test_networks_whose_map_is_a_point_are_deployed_like_the_others() -> None:
    classifier = build("vit_tiny_patch16_224", HEAD, 3, NONE, seed=0).eval()
    graph = classifier_graph(classifier, (48, 48), OUTPUTS)  # checks that both give the same
    images = np.zeros((2, 3, 48, 48), np.float32)
    logits, features, feature_map, _ = onnx_session(graph).run(None, {"images": images})
    assert logits.shape == (2, 3)
    np.testing.assert_array_equal(feature_map[:, :, 0, 0], features)


def test_the_2012_network_is_that_of_its_paper() -> None:
    """Sections 3.3 to 3.5 of Krizhevsky, Sutskever & Hinton 2012, by hand."""
    with torch.device("meta"):
        network, _ = build_backbone("alexnet_2012", NONE)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.groups) for c in convolutions] == [
        (96, 11, 1), (256, 5, 2), (384, 3, 1), (384, 3, 2), (256, 3, 2),
    ]  # fmt: skip
    # Its 60 million parameters less the 1000 classes of fc8.
    assert sum(p.numel() for p in network.parameters()) == 60_965_224 - 4_097_000
    activity = torch.rand(1, 96, 1, 1) * 50
    normalised = network.features[2](activity)
    squares = activity.flatten() ** 2
    for i in (0, 1, 50, 95):
        near = float(squares[max(0, i - 2) : i + 3].sum())
        expected = float(activity[0, i]) / (2 + 1e-4 * near) ** 0.75
        assert float(normalised[0, i]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (48, 80)])
def test_a_vits_map_is_its_class_token(size: tuple[int, int]) -> None:
    backbone, _ = build_backbone("vit_tiny_patch16_224", NONE)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        expected = backbone.eval().network.forward_features(images)[:, 0]
        assert torch.allclose(backbone(images)[:, :, 0, 0], expected, atol=1e-4)


def test_transformers_of_other_kinds_are_refused() -> None:
    with torch.device("meta"), pytest.raises(InputError, match="without one class token"):
        build_backbone("vit_base_patch16_gap_224", NONE)


@pytest.mark.parametrize(("before", "after"), [(14, 4), (14, 3), (14, 24), (7, 7)])
def test_resampling_is_torchs(before: int, after: int) -> None:
    line = torch.rand(1, 1, 1, before)
    expected = torch.nn.functional.interpolate(
        line, (1, after), mode="bicubic", antialias=True, align_corners=False
    )
    found = cubic_resampling(before, after) @ line.flatten().numpy()
    np.testing.assert_allclose(found, expected.flatten(), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (10, 7), (14, 9)])
def test_adaptive_means_are_torchs(size: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *size)
    expected = torch.nn.functional.adaptive_avg_pool2d(maps, 7)
    assert torch.allclose(adaptive_mean(maps, 7), expected, atol=1e-6)


def test_a_small_image_is_the_same_enlarged() -> None:
    with seeded(0):
        network = Enlarging(ConvolutionalNetwork((4, 4)), 75).eval()
        images = torch.rand(1, 3, 40, 90)
    larger = torch.nn.functional.interpolate(images, (75, 90), mode="bilinear")
    assert torch.equal(network(images), network(larger))
    assert torch.equal(network(larger), network.network(larger))


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
    return classifier, classifier_graph(classifier, (32, 32), OUTPUTS)


def test_the_graph_equals_the_module_for_any_number_of_images(
    tiny: tuple[nn.Module, bytes],
) -> None:
    classifier, graph = tiny
    session = onnx_session(graph)
    assert [output.name for output in session.get_outputs()] == list(OUTPUTS)
    for n in (1, 7):
        images = np.random.default_rng(n).random((n, 3, 32, 32), dtype=np.float32)
        got = session.run(None, {"images": images})
        with torch.inference_mode():
            expected = Deployed(classifier, len(OUTPUTS))(torch.from_numpy(images))
        assert [value.shape for value in got] == [tuple(value.shape) for value in expected]
        for value, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, want.numpy(), rtol=1e-3, atol=1e-4)


def test_unknown_architectures_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="mobilenetv2_1"):
        check_architecture("mobilenetv2_10")


def test_unknown_tags_are_refused() -> None:
    check_architecture("convnext_base.fb_in1k")
    check_architecture("convnext_base.tv_in1k")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'convnext_base.fb_in1k'"):
        check_architecture("convnext_base.fb_in1")


@pytest.mark.parametrize("name", ["cnn", "alexnet_2012"])
def test_weights_that_nobody_offers_are_not_downloaded(name: str) -> None:
    with pytest.raises(InputError, match=f"--weights PATH .* states architecture {name}"):
        resolve("auto", name)
    with pytest.raises(InputError, match=r"from scratch.*--weights none"):
        build_backbone(name, Weights("auto", NONE.input, {}))


def _save(network: nn.Module, folder: Path, architecture: str, library: str = "leukoscope") -> Path:
    path = folder / f"{architecture}.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    write_json(
        path.with_suffix(".json"),
        {"architecture": architecture, "library": library, "input": {}, "licence": "none",
         "sha256": sha256_of(path)},
    )  # fmt: skip
    return path


def _same(network: nn.Module, other: nn.Module) -> bool:
    state = network.state_dict()
    return all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_own_networks_take_weights_by_file(tmp_path: Path) -> None:
    with seeded(1):
        trained = ConvolutionalNetwork()
    path = _save(trained, tmp_path, "cnn")
    backbone, _ = build_backbone("cnn", resolve(str(path), "cnn"))
    assert _same(backbone, trained)
    with pytest.raises(InputError, match="takes no arguments"):
        build_backbone("cnn", Weights("none", NONE.input, {"depth": 3}))


def test_detectors_take_the_weights_of_their_body_or_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("auto", "retinanet").architecture == "resnet50"
    monkeypatch.setitem(BODIES, "centernet", "resnet10t")  # a small one of the same kind
    body = import_timm().create_model("resnet10t")
    found = resolve(str(_save(body, tmp_path, "resnet10t", "timm")), "centernet")
    network, _ = build_backbone("centernet", found)
    assert _same(body, network.body)
    again = resolve(str(_save(network, tmp_path, "centernet")), "centernet")
    assert _same(build_backbone("centernet", again)[0], network)


@pytest.mark.parametrize(
    ("stated", "wanted", "right"),
    [
        ("convnext_base", "convnext_base.fb_in1k", True),
        ("convnext_base.fb_in1k", "convnext_base", True),
        ("convnext_base.fb_in1k", "convnext_base.fb_in1k", True),
        ("convnext_base.fb_in22k", "convnext_base.fb_in1k", False),
        ("convnext_tiny", "convnext_base", False),
        ("resnet50", "retinanet", True),
        ("resnet50.tv_in1k", "centernet", True),
        ("retinanet", "retinanet", True),
        ("retinanet", "centernet", False),
        ("retinanet", "resnet50", False),
    ],
)
def test_which_files_fit_which_backbone(stated: str, wanted: str, right: bool) -> None:
    assert fits(stated, wanted) is right


def test_torchvisions_convnext_goes_into_timms(tmp_path: Path) -> None:
    theirs = models.convnext_tiny().eval()
    path = _save(theirs, tmp_path, "convnext_tiny", "torchvision")
    ours, _ = build_backbone("convnext_tiny", resolve(str(path), "convnext_tiny"))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs.classifier[0](theirs.features(images))
        assert torch.allclose(ours.eval()(images), expected, atol=1e-5)


def test_torchvisions_other_names_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        for name in ("alexnet", "vgg16", "resnet50", "densenet121"):
            theirs = getattr(models, name)().state_dict()
            monkeypatch.setattr(model_weights, "_download", lambda _, theirs=theirs: dict(theirs))
            found = Weights("auto", NONE.input, {}, architecture=name, library="torchvision")
            backbone, _ = build_backbone(name, found)
            shapes = [tuple(p.shape) for p in backbone.parameters()]
            assert (
                shapes
                == [tuple(p.shape) for p in getattr(models, name)().parameters()][: len(shapes)]
            )


def test_torchvisions_downloads_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = tmp_path / "offered"
    offered.mkdir()
    torch.save({"weight": torch.ones(2)}, offered / "new.pth")
    right = f"set-{sha256_of(offered / 'new.pth')[:8]}.pth"
    shutil.copy(offered / "new.pth", offered / right)
    shutil.copy(offered / "new.pth", offered / "set-00000000.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_weights, "TORCHVISION_URL", offered.as_uri() + "/")
    found = resolve("auto", "alexnet")
    for name, message in (
        ("absent-00000000.pth", r"can't be downloaded.*--weights PATH"),
        ("set-00000000.pth", r"another SHA-256 than 00000000.*Delete it"),
    ):
        monkeypatch.setitem(TORCHVISION, "alexnet", name)
        with pytest.raises(InputError, match=message):
            build_backbone("alexnet", found)
    monkeypatch.setitem(TORCHVISION, "alexnet", right)
    assert torch.equal(model_weights.read_state(found)["weight"], torch.ones(2))


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
