"""`explain`: heat maps of every kind of network, energy, sanity check, t-SNE, nearest cells."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from torch import nn

from commands import call, done, refused
from leukoscope import api
from leukoscope.bundle.inference import Reader
from leukoscope.data import synthetic
from leukoscope.errors import InputError
from leukoscope.explain import energy, features, sanity
from leukoscope.explain.autograd import class_maps
from leukoscope.explain.gradcam import enlarged, heat_map
from leukoscope.imaging.cells import box_of, main_nucleus, main_of
from leukoscope.imaging.enhancement import mask_after
from leukoscope.imaging.read import read_image
from leukoscope.imaging.sheet import sheet
from leukoscope.models.classifier import Classifier, build, head_gradient
from leukoscope.models.weights import resolve
from leukoscope.recipes import deploy, learning, origins
from leukoscope.report import feature_map
from leukoscope.report import run as reports

SIDE = 96  # a map of 3 x 3
TINY = (
    f"preprocessing=[{{step='resize', size={SIDE}}}]", "views.count=2", "training.epochs=1",
    "training.steps_per_epoch=3", "training.batch_size=4", "split.clean=60/20/20",
)  # fmt: skip
STACK = (
    *TINY[:1], "features.networks=[{backbone='cnn', layer='gap'}, "
    "{backbone='vit_tiny_patch16_224', layer='gap'}]", "classical.forest_trees=5",
    "classical.folds=2", *TINY[2:], "training.validate_every=0",
)  # fmt: skip


# --- by hand --------------------------------------------------------------------------------------


def test_grad_cam_and_its_energy_by_hand() -> None:
    """Two channels of 2 x 2, a hidden layer of two units, two classes; every step written out.

        A1 = 1 3   A2 = 2 0   pooled: (1+3+0+0)/4 = 1 and (2+0+4+2)/4 = 2
             0 0        4 2

    Hidden (x: pooled): h1 = relu(2 x1 - x2 + 1) = relu(1) = 1; h2 = relu(-x1 - x2) = relu(-3) = 0.
    Class 0: y0 = 3 h1 + 5 h2. h2 is off, so dy0/dx = 3 (2, -1) = (6, -3).
    By each position that is over Z = 4 (eq. 1): alpha = (6, -3) / 4.
    Sum of alpha A (eq. 2), times 4:  6 A1 - 3 A2 = 6-6  18-0 =   0  18
                                                     0-12  0-6   -12  -6
    ReLU: 0 18 / 0 0; over the maximum: 0 1 / 0 0. All its energy is in the upper row.
    Class 1: y1 = -h1, dy1/dx = (-2, 1):  -2 A1 + A2 = -2+2  -6+0 =  0 -6
                                                         4     2      4  2
    ReLU: 0 0 / 4 2; over 4: 0 0 / 1 .5. Of its energy 1 / 1.5 = 2/3 is in the left column.
    """
    maps = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]], [[2.0, 0.0], [4.0, 2.0]]]])
    head = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        head[0].weight.copy_(torch.tensor([[2.0, -1.0], [-1.0, -1.0]]))
        head[0].bias.copy_(torch.tensor([1.0, 0.0]))
        head[2].weight.copy_(torch.tensor([[3.0, 5.0], [-1.0, 0.0]]))
        head[2].bias.zero_()
    expected = np.array([[[0, 1], [0, 0]], [[0, 0], [1, 0.5]]])

    by_torch = class_maps(Classifier(nn.Identity(), head), maps)[0].numpy()
    assert_allclose(by_torch, [[[0, 18 / 4], [0, 0]], [[0, 0], [4 / 4, 2 / 4]]])
    gradient = head_gradient(head, maps.mean(dim=(2, 3)))[0].detach().numpy()
    assert_allclose(gradient, [[6, -3], [-2, 1]])
    for k in range(2):
        heat = heat_map(maps[0].numpy(), gradient[k])
        assert_allclose(heat, expected[k])

    upper, left = np.array([[1, 1], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    assert energy.share(expected[0], upper) == 1
    assert energy.share(expected[1], left) == pytest.approx(2 / 3)
    assert energy.share(np.zeros((2, 2)), left) is None


def test_chosen_classes_have_the_maps_that_all_have() -> None:
    classifier = build("cnn", [], 3, resolve("none", "cnn"), seed=0).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        class_maps(classifier, images, [2])[:, 0], class_maps(classifier, images)[:, 2]
    )


def test_mean_interval_is_students_and_counts_a_patient_once() -> None:
    values = [0.1, 0.4, 0.35, 0.8]
    found = energy.mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert_allclose([found["value"], found["low"], found["high"]], [np.mean(values), *expected])
    by_patient = energy.mean_interval([*values, None, 0.6], ["a", "b", "c", "d", "e", "d"])
    same = energy.mean_interval([0.1, 0.4, 0.35, 0.7])
    assert by_patient == same | {"n": 5}
    assert energy.mean_interval([None])["value"] is None
    few = energy.mean_interval([0.2, 0.4], ["a", None])
    assert (few["value"], few["low"], few["groups"]) == (pytest.approx(0.3), None, 2)


@pytest.mark.parametrize("background", ["edge", "white"])
def test_masks_go_where_their_pixels_go(background: str) -> None:
    mask = np.zeros((40, 80), bool)
    mask[10:20, 20:40] = True
    chain = [
        {"step": "resize_keep_aspect", "size": 80, "background": background},
        {"step": "equalise_luminance"},
    ]
    after = mask_after(mask, chain)
    expected = np.zeros((80, 80), bool)
    expected[30:40, 20:40] = True
    assert (after == expected).all()
    # What is added around a mask that fills its image is outside all the same.
    assert mask_after(np.ones((4, 8), bool), [chain[0] | {"size": 8}]).sum() == 32


# --- sanity check ---------------------------------------------------------------------------------


class _Edges(nn.Module):
    """A 'network' that learns nothing: its one channel is the image's brightness."""

    num_features = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=1, keepdim=True)


def _edges(_: int) -> Classifier:
    head = nn.Linear(1, 2)
    nn.init.ones_(head.weight)
    return Classifier(_Edges(), nn.Sequential(head))


def test_maps_that_no_weight_changes_fail_the_sanity_check() -> None:
    images = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = sanity.randomised(_edges(0), _edges, images, [0, 1, 0, 1, 0])
    assert found["whole"]["value"] == pytest.approx(1)
    assert found["passed"] is False


def test_maps_of_random_networks_pass_it_and_points_have_no_ranks() -> None:
    def untrained(seed: int) -> Classifier:
        return build("cnn", [], 3, resolve("none", "cnn"), seed=seed).eval()

    images = torch.rand(6, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    trained, classes = untrained(100), [0, 1, 2, 0, 1, 2]
    found = sanity.randomised(trained, untrained, images, classes)
    assert abs(found["whole"]["value"]) < 0.4
    again = sanity.randomised(trained, untrained, images, classes)
    assert again == found
    point = sanity.randomised(trained, untrained, images[..., :32, :32], classes)
    assert point["passed"] is None
    assert "ranked" in point["why"]


def test_rank_correlation_is_spearmans() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.array([[0, 2, 1], [3, 5, 4.0]])
    # Differences of ranks: 0 1 1 0 1 1; 1 - 6 * 4 / (6 * 35).
    assert sanity.rank_correlation(a, b) == pytest.approx(1 - 24 / 210)
    assert sanity.rank_correlation(a, np.ones((2, 3))) is None


# --- feature space --------------------------------------------------------------------------------


def _clusters(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    middles = 4 * rng.normal(size=(3, 12))
    labels = np.arange(n) % 3
    return middles[labels] + rng.normal(size=(n, 12)), labels


def test_tsne_keeps_clusters_together_and_repeats_itself() -> None:
    rows, labels = _clusters()
    places = features.tsne(rows, seed=1)
    assert places.shape == (30, 2)
    assert (features.tsne(rows, seed=1) == places).all()
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(30)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert features.perplexity_for(8) == pytest.approx(7 / 3)
    assert features.perplexity_for(10_000) == 30
    assert np.isfinite(features.tsne(rows[:8], seed=0)).all()
    with pytest.raises(InputError, match="8 or more"):
        features.tsne(rows[:7], seed=0)


def test_nearest_rows_by_hand() -> None:
    training = features.unit(np.array([[2, 0], [0, 3], [1, 1], [-1, 0]])).astype(np.float16)
    places, similarity = features.nearest(np.array([5.0, 0]), training, 3)
    assert places.tolist() == [0, 2, 1]
    assert_allclose(similarity, [1, 2**-0.5, 0], atol=1e-3)
    places, _ = features.nearest(np.array([5.0, 0]), training, 9, np.array([0, 1, 1, 0], bool))
    assert places.tolist() == [2, 1]


def test_a_map_of_features_says_where_errors_lie(tmp_path: Path) -> None:
    _, labels = _clusters(60)
    rng = np.random.default_rng(1)
    places = 20 * np.eye(3)[labels][:, :2] + rng.normal(size=(60, 2))
    names = np.array(["<b>a</b>", "$x_{$", "白血球"])[labels]
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(60)], "x": places[:, 0],
                          "y": places[:, 1], "predicted": names, "label": names,
                          "novelty": 0.5})  # fmt: skip
    assert "100.0% have its label." in feature_map.conclusion(frame)
    frame.loc[0, "label"] = names[1]  # lies among the others
    said = feature_map.conclusion(frame)
    assert "0.0% of wrong ones" in said
    assert "look like them" in said
    frame.to_csv(tmp_path / "tsne.csv", index=False)
    feature_map.write(tmp_path)
    assert read_image(tmp_path / "tsne.png").shape[0] > 300
    svg = (tmp_path / "tsne.svg").read_text()
    assert "<b>" not in svg
    assert "wrong answer" in svg
    for unknown in (frame.assign(label=None), frame.head(5)):
        assert "Too few labels" in feature_map.conclusion(unknown)
        feature_map.draw(unknown)
    frame.drop(columns="x").to_csv(tmp_path / "tsne.csv", index=False)
    with pytest.raises(InputError, match=r"tsne\.csv"):
        feature_map.read(tmp_path)


def test_sheets_take_any_text() -> None:
    image = np.zeros((30, 60, 3), np.uint8)
    made = sheet([("白 \u202e" + "long " * 30, image), ("", image), ("a\nb", image)], columns=2)
    assert made.shape[1] > 2 * 224
    assert (made == 0).sum() == 3 * 3 * 112 * 224  # each is there whole, its text elsewhere


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 60 synthetic cells of 64 px from 24 patients."""
    folder = tmp_path_factory.mktemp("smear")
    api.index(synthetic.make(folder, images=60, size=64, patients=24), folder / "cells.parquet")
    return folder


def _trained(recipe: str, cells: Path, out: Path, settings: tuple[str, ...], arm: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(out.parent / "cache"))
        api.train(recipe, cells, out, arm=arm, weights="none", settings=list(settings))
    return out


@pytest.fixture(scope="module")
def run(smear: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lightweight recipe's own network."""
    out = tmp_path_factory.mktemp("runs") / "cnn"
    return _trained("lightweight-cnn", smear / "cells.parquet", out, TINY, "cnn")


@pytest.fixture(scope="module")
def stack(smear: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classical model on a convolutional network and a vision transformer."""
    out = tmp_path_factory.mktemp("runs") / "stack"
    return _trained("hybrid-stacking", smear / "cells.parquet", out, STACK, "hybrid")


def _images(smear: Path, n: int) -> list[Path]:
    return sorted((smear / "images").rglob("*.jpg"))[:n]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_explains_its_own_errors_and_right_answers(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    out = run / "explain"
    answer = call("explain", run, "-o", out, "--tsne", "--sanity", "--neighbours", 3)
    assert answer.code == 0, answer
    assert "sanity check" in answer.err
    found = _read(out / "explain.json")
    tested = pd.read_parquet(run / "predictions.parquet").query("role == 'test' and view == 0")
    said = tested.set_index("image")["predicted"]
    wrong = int((tested["label"] != tested["predicted"]).sum())
    assert sum(e["label"] != e["predicted"] for e in found) == min(8, wrong)
    assert sum(e["label"] == e["predicted"] for e in found) == min(8, len(tested) - wrong)
    for entry in found:
        (name,) = [i for i in said.index if entry["image"].endswith(i)]
        assert entry["predicted"] == said[name]
        assert (out / entry["file"]).is_file()
        assert [m["grid"] for m in entry["maps"]] == [[3, 3]]
        assert len(entry["neighbours"]) == 3
        similarities = [n["similarity"] for n in entry["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)
    training = set(pd.read_parquet(run / "split.parquet").query("role == 'train'")["image"])
    near = {n["image"] for e in found for n in e["neighbours"]}
    assert all(any(n.endswith(i) for i in training) for n in near)

    table = pd.read_csv(out / "tsne.csv")
    assert list(table.columns) == ["image", "x", "y", "predicted", "label", "novelty"]
    assert sorted(table["image"]) == sorted(tested["image"])
    assert (table.set_index("image")["predicted"] == said).all()
    rows = _read(out / "energy.json")
    assert {(r["answers"], r["region"]) for r in rows} >= {("all", "cell"), ("all", "nucleus")}
    assert {r["unit"] for r in rows} == {"patient"}
    assert {"head", "whole", "passed", "why"} <= set(_read(out / "sanity.json")["networks"][0])

    html = reports.write(run).read_text()
    for words in ("heat maps of", "of the heat in", "Adebayo", "t-SNE of the features",
                  "training cells that look most alike"):  # fmt: skip
        assert words in html, words
    assert (run / "figures" / "tsne.csv").is_file()


def test_energy_is_that_of_the_map_on_the_nucleus(run: Path, smear: Path, tmp_path: Path) -> None:
    bundle = api.export(run, tmp_path / "bundle")
    paths = _images(smear, 3)
    made = api.explain(bundle, paths, tmp_path / "maps")
    reader = Reader.load(bundle)
    for path, entry in zip(paths, made, strict=True):
        image = read_image(path)
        outputs = ("logits", "feature_map", "class_gradient")
        logits, feature_map_, gradient = reader.run(reader.prepare(image)[None], outputs)
        heat = enlarged(heat_map(feature_map_[0], gradient[0, logits[0].argmax()]), SIDE, SIDE)
        nucleus = main_nucleus(image)
        box = box_of(nucleus)
        cell = np.zeros(nucleus.shape, np.uint8)
        cell[box.y : box.y + box.height, box.x : box.x + box.width] = 255
        large = cv2.resize(cell, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) > 127
        if heat.sum() == 0:
            assert entry["why_no_energy"] == "nothing speaks for the class"
            continue
        assert entry["energy_in_cell"] == pytest.approx(heat[large].sum() / heat.sum(), abs=0.02)
        assert entry["cell_area"] == pytest.approx(large.mean(), abs=0.02)
        assert entry["energy_in_nucleus"] <= entry["energy_in_cell"] + 1e-9
        assert (entry["label"], entry["nucleus"]) == (None, "segmentation")


def test_masks_given_take_the_place_of_segmentation(run: Path, smear: Path, tmp_path: Path) -> None:
    first, second, third = _images(smear, 3)
    masks = tmp_path / "masks"
    masks.mkdir()
    square = np.zeros(read_image(first).shape[:2], np.uint8)
    square[:32, :32] = 255
    cv2.imwrite(str(masks / f"{first.stem}.png"), square)
    cv2.imwrite(str(masks / f"{second.stem}.png"), square[:5])
    made = api.explain(run, [first, second, third], tmp_path / "maps", masks=masks)
    assert made[0]["nucleus"] == "mask"
    assert made[0]["nucleus_area"] == pytest.approx(1 / 4, abs=0.02)
    assert "64x5, its image 64x64" in made[1]["why_no_energy"]
    assert made[2]["why_no_energy"]
    assert [e["energy_in_cell"] for e in made[1:]] == [None, None]
    assert all((tmp_path / "maps" / e["file"]).is_file() for e in made)


def test_main_nucleus_of_a_mask_is_the_largest() -> None:
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = mask[2:6, 2:6] = True
    assert main_of(mask).sum() == 400
    assert not main_of(np.zeros((5, 5), bool)).any()


def test_each_network_of_a_stack_has_its_own_map(stack: Path, smear: Path, tmp_path: Path) -> None:
    paths = _images(smear, 3)
    made = api.explain(stack, paths, tmp_path / "maps", sanity=True, neighbours=2)
    for entry in made:
        assert [m["network"] for m in entry["maps"]] == ["cnn", "vit_tiny_patch16_224"]
        assert [m["grid"] for m in entry["maps"]] == [[3, 3], [6, 6]]
        parts = [m["energy_in_cell"] for m in entry["maps"] if m["energy_in_cell"] is not None]
        assert entry["energy_in_cell"] == (pytest.approx(np.mean(parts)) if parts else None)
        # As it is, as seen, two maps: two rows of at most three tiles.
        height, width = read_image(tmp_path / "maps" / entry["file"]).shape[:2]
        assert width > 3 * 200
        assert height > 2 * 200
    checked = _read(tmp_path / "maps" / "sanity.json")
    assert [n["network"] for n in checked["networks"]] == ["cnn", "vit_tiny_patch16_224"]

    bundle = api.export(stack, tmp_path / "bundle")
    said = refused("explain", bundle, paths[0], "-o", tmp_path / "none")
    assert "need the run that the bundle was exported from" in said
    assert "leukoscope[train]" in said
    # What needs no map is made all the same.
    shutil.copy(stack / "model" / "training_features.npz", bundle)
    answer = call("explain", bundle, *paths, "-o", tmp_path / "near", "--neighbours", 2)
    assert answer.code == 0, answer
    assert "need the run" in answer.err
    near = _read(tmp_path / "near" / "explain.json")
    assert "file" not in near[0]
    assert [n["image"] for n in near[0]["neighbours"]] == [
        n["image"] for n in made[0]["neighbours"]
    ]


def test_a_vision_transformer_alone_has_maps(run: Path, smear: Path, tmp_path: Path) -> None:
    """Its weights as they start, in the place of a trained network's."""
    contract = deploy.load_model(run)[1]
    name = "vit_tiny_patch16_224"
    network = contract.model.networks[0].model_copy(update={"architecture": name})
    model = contract.model.model_copy(update={"networks": [network], "heat_maps": False})
    contract = contract.model_copy(update={"model": model, "novelty": None})
    learned = learning.Learned([deploy.untrained(network, contract, seed=0)], (SIDE, SIDE))
    deploy.save_model(learned, contract, tmp_path / "run" / "model")
    shutil.copy(run / "metrics.json", tmp_path / "run")
    made = api.explain(tmp_path / "run", _images(smear, 2), tmp_path / "maps")
    assert [m["grid"] for m in made[0]["maps"]] == [[6, 6]]
    bundle = api.export(tmp_path / "run", tmp_path / "bundle")
    said = refused("explain", bundle, _images(smear, 1)[0], "-o", tmp_path / "none")
    assert f"{name} need the run" in said


def test_networks_that_only_give_features_say_so(smear: Path, tmp_path: Path) -> None:
    settings = (
        *STACK,
        "features.finetune=false",
        "features.networks=[{backbone='cnn', layer='gap'}]",
    )
    cells = smear / "cells.parquet"
    run = _trained("hybrid-stacking", cells, tmp_path / "frozen", settings, "hybrid")
    said = refused("explain", run, _images(smear, 1)[0], "-o", tmp_path / "none")
    assert "features.finetune=true" in said
    answer = call("explain", run, "-o", tmp_path / "tsne", "--tsne")
    assert answer.code == 0, answer
    assert "were not trained to classify" in answer.err
    assert (tmp_path / "tsne" / "tsne.svg").is_file()


def test_a_bundle_says_what_needs_its_run(run: Path, smear: Path, tmp_path: Path) -> None:
    bundle = api.export(run, tmp_path / "bundle")
    first, out = _images(smear, 1)[0], tmp_path / "none"
    assert "--sanity" in refused("explain", bundle, first, "-o", out, "--sanity")
    assert "no folder of masks" in refused("explain", bundle, first, "-o", out, "--masks", first)
    assert "No images were given" in refused("explain", bundle, "-o", out)
    assert "training images" in refused("explain", bundle, first, "-o", out, "--neighbours", 2)
    assert "8 or more" in refused("explain", bundle, first, "-o", out, "--tsne")
    made = done("explain", bundle, *_images(smear, 12), "-o", tmp_path / "maps", "--tsne")
    assert "11 heat maps" in made
    assert "Unreadable: " in made  # the smear has a broken file
    table = pd.read_csv(tmp_path / "maps" / "tsne.csv")
    assert len(table) == 11
    assert table["label"].isna().all()


def test_training_images_that_are_gone_are_passed_over(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    known = origins.of_run(run)
    assert known is not None
    gone, query, *_ = known.paths(known.training)
    (run / "model" / "training_features.npz").unlink(missing_ok=True)
    remarks: list[str] = []
    gone.rename(tmp_path / "aside")
    try:
        made = api.explain(run, [query], tmp_path / "near", neighbours=100, say=remarks.append)
    finally:
        (tmp_path / "aside").rename(gone)
    assert f"1 of {len(known.training)} training images can't be read" in remarks[0]
    near = {n["image"] for n in made[0]["neighbours"]}
    # Nor is the cell its own neighbour, or any byte-for-byte copy of it.
    assert str(gone) not in near
    assert str(query) not in near
    assert len(known.training) - 5 < len(near) < len(known.training) - 1
    # Kept: a second time nothing is computed, and a picture that is gone is a remark.
    other = next(iter(near))
    Path(other).rename(tmp_path / "aside")
    try:
        again = api.explain(run, [query], tmp_path / "near", neighbours=100, say=remarks.append)
    finally:
        (tmp_path / "aside").rename(other)
    assert again[0]["neighbours"] == made[0]["neighbours"]
    assert "have no picture" in remarks[-1]
    (run / "model" / "training_features.npz").write_bytes(b"PK garbage")
    scored = known.paths(known.scored["image"])
    scored[0].rename(tmp_path / "aside")
    try:
        own = api.explain(run, [], tmp_path / "own", tsne=True, say=remarks.append)
    finally:
        (tmp_path / "aside").rename(scored[0])
    assert "1 of" in remarks[-1]
    assert [e["image"] for e in own if "why" in e] in ([], [str(scored[0])])
    assert api.explain(run, [query], tmp_path / "near", neighbours=1)[0]["neighbours"]


def test_of_a_cross_validation_the_fold_whose_model_is_kept_counts(
    run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    own = origins.of_run(run)
    assert own is not None
    for name in ("split.parquet", "predictions.parquet"):
        frame = pd.read_parquet(run / name).assign(fold=1)
        other = frame.assign(fold=0, role=frame["role"].map({"train": "test", "test": "train"}))
        pd.concat([other, frame]).to_parquet(run / name)
    stated = _read(run / "environment.json")
    (run / "environment.json").write_text(json.dumps(stated | {"model_of_fold": 1}))
    found = origins.of_run(run)
    assert found is not None
    assert found.training == own.training
    assert found.scored.equals(own.scored)
    (run / "environment.json").write_text(json.dumps(stated | {"index": {"path": "/nowhere"}}))
    assert origins.of_run(run) is None


# --- images with masks ----------------------------------------------------------------------------


def _crops(bccd: Path, folder: Path, fields: int) -> Path:
    """A csv of white and red cells cut out of BCCD's fields, the white ones with their masks."""
    folder.mkdir()
    rows = []
    for path in sorted((bccd / "annotations").iterdir()):
        image, nucleus = read_image(bccd / "images" / f"{path.stem}.jpg"), bccd / "nucleus"
        mask = next(nucleus.glob(f"{path.stem}.*"), None)
        if mask is None:
            continue
        drawn, seen = read_image(mask)[:, :, 0], set()
        for place in ElementTree.parse(path).iter("object"):
            name = place.findtext("name") or ""
            if name not in ("WBC", "RBC") or name in seen:
                continue
            seen.add(name)
            corner = {e.tag: int(e.text or 0) for e in place.find("bndbox") or ()}
            part = (slice(max(0, corner["ymin"] - 30), corner["ymax"] + 30),
                    slice(max(0, corner["xmin"] - 30), corner["xmax"] + 30))  # fmt: skip
            stem = f"{path.stem}-{name}"
            cv2.imwrite(str(folder / f"{stem}.png"), image[part][..., ::-1])
            row = {"image": f"{stem}.png", "label": name, "mask": ""}
            if name == "WBC":
                cv2.imwrite(str(folder / f"{stem}-mask.png"), drawn[part])
                row["mask"] = f"{stem}-mask.png"
            rows.append(row)
        if len(rows) >= 2 * fields:
            break
    pd.DataFrame(rows).to_csv(folder / "cells.csv", index=False)
    return folder / "cells.csv"


@pytest.mark.real
def test_energy_is_reported_on_images_with_masks(bccd: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells.parquet"
    api.index(_crops(bccd, tmp_path / "crops", 24), cells, layout="csv")
    settings = (*TINY[:2], "training.epochs=3", "training.steps_per_epoch=12", *TINY[4:])
    run = _trained("lightweight-cnn", cells, tmp_path / "run", settings, "cnn")
    white = sorted((tmp_path / "crops").glob("*-WBC.png"))
    made = api.explain(run, white, run / "explain")
    assert [e["nucleus"] for e in made] == ["mask"] * len(white)
    for path, entry in zip(white, made, strict=True):
        drawn = main_of(read_image(path.with_name(f"{path.stem}-mask.png"))[:, :, 0] > 127)
        assert entry["nucleus_area"] == pytest.approx(drawn.mean(), abs=0.01)
        if entry["energy_in_cell"] is not None:
            assert 0 <= entry["energy_in_nucleus"] <= entry["energy_in_cell"] <= 1
    rows = {(r["answers"], r["region"]): r for r in _read(run / "explain" / "energy.json")}
    inside = [e["energy_in_cell"] for e in made if e["energy_in_cell"] is not None]
    assert len(inside) > 12
    row = rows["all", "cell"]
    assert row["energy"]["value"] == pytest.approx(np.mean(inside))
    assert row["energy"]["low"] < row["energy"]["value"] < row["energy"]["high"]
    html = reports.write(run).read_text()
    assert "of the heat in" in html
    assert "95% intervals by image" in html
