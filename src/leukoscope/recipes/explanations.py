"""`explain`: heat maps of a run's or a bundle's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.bundle.inference import Reader
from leukoscope.data.derived import output_folder_apart, write_png
from leukoscope.data.tree import find_images
from leukoscope.errors import InputError, UnreadableError
from leukoscope.explain.gradcam import heat_map, overlay
from leukoscope.files import write_json
from leukoscope.imaging.enhancement import resize_keep_aspect, resized
from leukoscope.imaging.pipeline import apply
from leukoscope.imaging.read import read_image
from leukoscope.progress import track
from leukoscope.recipes.judgement import open_reader

TILE = 224  # small inputs are enlarged to about this, px
Maps = Callable[[np.ndarray], tuple[np.ndarray, list[np.ndarray]]]
"""An image, uint8 RGB, to (k,) probabilities and the predicted class's heat map of each network."""


def explain(source: Path, images: Sequence[str | Path], out: Path) -> list[dict[str, Any]]:
    """Write one picture an image, and `explain.json`: the image as it is, then as the network got
    it under the Grad-CAM of its predicted class, of each network where there are several.

    Returns explain.json: {image, file, predicted, confidence} or {image, why} a file. Raises
    InputError where no file could be read, or a bundle's network needs torch for heat maps.
    """
    paths = find_images(images)
    output_folder_apart(out, paths)
    reader = open_reader(source)
    maps = _of_graph(reader) if reader.contract.model.heat_maps else _by_torch(source, reader)
    found: list[dict[str, Any]] = []
    for number, path in enumerate(track(paths, "Heat maps")):
        try:
            image = read_image(path)
        except UnreadableError as problem:
            found.append({"image": str(path), "why": problem.message})
            continue
        probs, heats = maps(image)
        best = int(probs.argmax())
        name = f"{number:04d}-{path.stem[:60]}.png"
        write_png(out / name, _picture(image, reader, heats)[..., ::-1])
        found.append(
            {
                "image": str(path),
                "file": name,
                "predicted": reader.contract.classes[best],
                "confidence": float(probs[best]),
            }
        )
    write_json(out / "explain.json", found)
    if not any("file" in entry for entry in found):
        raise InputError(
            f"None of {len(paths)} files could be read: {found[0]['why']}",
            fix="Give JPEG, PNG, TIFF or BMP images.",
            field="images",
        )
    return found


def _picture(image: np.ndarray, reader: Reader, heats: Sequence[np.ndarray]) -> np.ndarray:
    """The image beside what each network saw, under its heat map, in tiles of one size."""
    seen = apply(image, reader.contract.preprocessing)
    scale = max(1, round(TILE / max(seen.shape[:2])))
    size = [scale * side for side in seen.shape[:2]]
    tiles = [resize_keep_aspect(image, size=size, background="white")]
    tiles += [resized(overlay(seen, heat), *size) for heat in heats]
    return np.hstack(tiles)


def _of_graph(reader: Reader) -> Maps:
    def maps(image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        logits, feature_map, gradient = reader.run(
            reader.prepare(image)[None], ("logits", "feature_map", "class_gradient")
        )
        probs = reader.calibrated(logits)[0]
        return probs, [heat_map(feature_map[0], gradient[0, int(probs.argmax())])]

    return maps


def _by_torch(source: Path, reader: Reader) -> Maps:
    """Of a run: each network's own Grad-CAM, for the class that the whole model predicts."""
    model = reader.contract.model
    if not (source / "model").is_dir():
        raise InputError(
            f"Heat maps of {model.described} need the run that the bundle was exported from",
            fix="Run leukoscope explain RUN IMAGE… -o DIR, with 'leukoscope[train]' installed.",
            field="source",
        )
    if not all(network.classifies for network in model.networks):
        raise InputError(
            f"{source} has no heat maps: its networks give features and were not trained to "
            "classify",
            fix="Train with --set features.finetune=true.",
            field="source",
        )
    import torch

    from leukoscope.explain.autograd import class_maps
    from leukoscope.recipes.deploy import load_model

    learned, contract = load_model(source)
    given = contract.input
    mean, std = np.array(given.mean, np.float32), np.array(given.std, np.float32)

    def maps(image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        prepared = reader.prepare(image)
        probs = reader.answer(prepared[None]).probs[0]
        heats = []
        for network, classifier in zip(model.networks, learned.classifiers, strict=True):
            # Each network wants its own normalisation of the same pixels.
            pixels = prepared.transpose(1, 2, 0) * std + mean
            own = (pixels - np.array(network.mean, np.float32)) / np.array(network.std, np.float32)
            images = torch.from_numpy(np.ascontiguousarray(own.transpose(2, 0, 1)))[None]
            found = class_maps(classifier, network.architecture, images)
            heat = found[0, int(probs.argmax())].detach().numpy()
            heats.append(heat / heat.max() if heat.max() > 0 else heat)
        return probs, heats

    return maps
