"""Cells that a model finds similar: the nearest training images, and t-SNE of many images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope.bundle.contract import Contract
from leukoscope.bundle.inference import Answers, Reader
from leukoscope.data.derived import write_png
from leukoscope.errors import InputError, UnreadableError, some
from leukoscope.explain import features as spaces
from leukoscope.files import atomic, sha256_of, to_json
from leukoscope.imaging.read import read_image
from leukoscope.imaging.sheet import Tile, sheet
from leukoscope.progress import track
from leukoscope.recipes.origins import Origins

FILE = "training_features.npz"
COLUMNS, SIDE = 3, 224  # of a contact sheet
Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """The features of a model's training images: rows (n, d) float16 of length 1."""

    paths: list[str]
    labels: list[str]
    sha256: list[str]
    rows: np.ndarray


# --- nearest training cells -----------------------------------------------------------------------


def training_features(source: Path, reader: Reader, origins: Origins | None, say: Say) -> Training:
    """The features of the training part, computed once and kept as training_features.npz.

    A run keeps them in its folder model/; a bundle reads such a file where one was copied into it.
    2 bytes a value: 80,000 images of 1,280 features are 200 MB. Raises InputError where they are
    not kept and the run's index or images are no more there.
    """
    kept = source / "model" / FILE if (source / "model").is_dir() else source / FILE
    key = _key(reader.contract)
    found = _kept(kept, key)
    if found is not None:
        return found
    if origins is None or not origins.training:
        raise InputError(
            f"The training images of {source} are not known here",
            fix="Run it on the run folder, with its index and images in place; for a bundle, copy "
            f"model/{FILE} from that run into it then.",
            field="neighbours",
        )
    found = _computed(reader, origins, say)
    try:
        _keep(kept, found, key)
    except InputError as problem:  # a run may lie where nobody may write
        say(f"The training features were not kept: {problem.message}")
    return found


def _computed(reader: Reader, origins: Origins, say: Say) -> Training:
    rows = origins.index.frame.set_index("image").loc[origins.training]
    paths = origins.paths(origins.training)
    readable, features, gone = [], [], []
    said = track(reader.read(paths), "Features of the training images", total=len(paths))
    for place, (path, answer) in enumerate(said):
        if isinstance(answer, UnreadableError):
            gone.append(path.name)
        else:
            readable.append(place)
            features.append(spaces.unit(answer.features)[0].astype(np.float16))
    if gone:
        say(f"{len(gone)} of {len(paths)} training images can't be read and are passed over: "
            f"{some(gone)}")  # fmt: skip
    if not readable:
        raise InputError(
            f"None of the {len(paths)} training images can be read any more",
            fix="Put them back where the index says, or index them again.",
            field="neighbours",
        )
    return Training(
        [str(paths[place]) for place in readable],
        rows["label"].iloc[readable].tolist(),
        rows["sha256"].iloc[readable].tolist(),
        np.stack(features),
    )


def _key(contract: Contract) -> str:
    """What the features depend on, the same for a run and its bundle."""
    model = contract.model
    stated = {
        "input": contract.input.model_dump(),
        "preprocessing": contract.preprocessing,
        "networks": [network.model_dump() for network in model.networks],
        "zscore": model.zscore,
    }
    return hashlib.sha256(to_json(stated).encode()).hexdigest()


def _keep(path: Path, found: Training, key: str) -> None:
    about = {"key": key, "paths": found.paths, "labels": found.labels, "sha256": found.sha256}
    text = np.frombuffer(to_json(about).encode(), np.uint8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, about=text, rows=found.rows)


def _kept(path: Path, key: str) -> Training | None:
    """What was kept; None where there is nothing, or of another model."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            rows = stored["rows"]
        found = Training(about["paths"], about["labels"], about["sha256"], rows)
        whole = rows.ndim == 2 and len(rows) == len(found.paths) == len(found.labels)
        return found if whole and about["key"] == key else None
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return None  # damaged: it is made anew


def neighbours(answer: Answers, path: Path, training: Training, k: int) -> list[dict[str, Any]]:
    """The k training images most similar to a cell, [{image, label, similarity}], nearest first.

    Copies of the file itself, byte for byte, are left out: they say nothing.
    """
    own = sha256_of(path)
    others = np.array([digest != own for digest in training.sha256])
    places, similarity = spaces.nearest(answer.features[0], training.rows, k, others)
    return [
        {"image": training.paths[p], "label": training.labels[p], "similarity": float(s)}
        for p, s in zip(places, similarity, strict=True)
    ]


def neighbour_sheet(
    image: np.ndarray, title: str, found: Sequence[Mapping[str, Any]], out: Path
) -> list[str]:
    """Write a contact sheet of a cell and its neighbours; returns those that can't be read."""
    tiles: list[Tile] = [(title, image)]
    gone = []
    for entry in found:
        try:
            near = read_image(Path(entry["image"]))
        except UnreadableError:
            gone.append(entry["image"])
            continue
        tiles.append((f"{entry['label']}\nsimilarity {entry['similarity']:.3f}", near))
    write_png(out, sheet(tiles, columns=COLUMNS, side=SIDE)[..., ::-1])
    return gone


# --- t-SNE ----------------------------------------------------------------------------------------


def tsne_table(
    said: Mapping[Path, Answers], labels: Mapping[Path, str | None], classes: Sequence[str],
    names: Mapping[Path, str], seed: int,
) -> pd.DataFrame:  # fmt: skip
    """tsne.csv: image, x, y, predicted, label (null where unknown) and novelty of each image."""
    found = list(said.values())
    places = spaces.tsne(np.concatenate([each.features for each in found]), seed)
    return pd.DataFrame(
        {
            "image": [names[path] for path in said],
            "x": places[:, 0].round(4),
            "y": places[:, 1].round(4),
            "predicted": [classes[int(each.probs[0].argmax())] for each in found],
            "label": [labels.get(path) for path in said],
            "novelty": [float(each.novelty[0]) for each in found],
        }
    )
