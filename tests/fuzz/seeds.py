"""Small sound files of every format, made by code: where fuzzing starts. All of it is synthetic."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from PIL import Image

from leukoscope.data.signature import COLOUR_FEATURES, SIDE
from leukoscope.recipes import schema

CLASSES = ("lymphocyte", "monocyte")
SIZE = 8  # pixels of the contract's input


def image() -> list[bytes]:
    """Every format, mode and compression that is read, 8 x 6 pixels; EXIF, profile, two frames."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "cell"
    deep = rng.integers(0, 65535, (6, 8, 3)).astype(np.uint16)
    return [
        _saved(rgb, "JPEG", quality=80),
        _saved(rgb, "JPEG", progressive=True, exif=exif),
        _saved(rgb.convert("L"), "JPEG"),
        _saved(rgb.convert("CMYK"), "JPEG"),
        *(_saved(rgb.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        _saved(rgb, "PNG", exif=exif, icc_profile=b"no profile", transparency=(1, 2, 3)),
        _saved(Image.fromarray(deep[..., 0]), "PNG"),
        _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        *(_saved(rgb, "TIFF", compression=c) for c in (None, "tiff_lzw", "jpeg", "packbits")),
        _saved(rgb.convert("1"), "TIFF", compression="group4"),
        _saved(Image.fromarray(deep[..., 0]), "TIFF"),
        _saved(Image.fromarray(rng.random((6, 8)).astype(np.float32)), "TIFF"),
        *(_saved(rgb.convert(mode), "BMP") for mode in ("1", "P", "RGB", "RGBA")),
        _saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        _saved(rgb, "WEBP"),
        _saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        *(_saved(rgb.convert(mode), "PPM") for mode in ("1", "L", "RGB")),
        b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n",
        _saved(rgb, "JPEG2000"),
        *(cv2.imencode(suffix, deep)[1].tobytes() for suffix in (".png", ".tiff")),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def index() -> list[bytes]:
    """A whole index of four images, one of another tool, and csv lists."""
    images = [f"cells/{i}.png" for i in range(4)]
    whole = {
        "image": images,
        "label": [CLASSES[i % 2] for i in range(4)],
        "patient": ["P1", "P1", "P2", None],
        "slide": ["a", None, None, None],
        "source": [None] * 4,
        "mask": [None] * 4,
        "width": [8] * 4,
        "height": [6] * 4,
        "sha256": [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)],
        "phash": [f"{i * 0x1111:016x}" for i in range(4)],
        "thumbnail": [bytes([40 * i]) * SIDE * SIDE for i in range(4)],
        "colour": [[0.1 * i] * len(COLOUR_FEATURES) for i in range(4)],
        "size": [100] * 4,
        "mtime_ns": [10**18] * 4,
    }
    about = {"format": 1, "side": SIDE, "name": "own", "licence": "CC0", "citation": "",
             "root": ".", "root_from_index": ".", "layout": "csv",
             "unreadable": [{"image": "x.png", "why": "the file is empty"}]}  # fmt: skip
    return [
        _parquet(whole, about),
        _parquet({name: whole[name] for name in ("image", "label")}),
        _csv({name: whole[name] for name in ("image", "label", "patient")}),
        '\ufeffimage;label;mask\n"a;b.png";NA;\n'.encode(),
    ]


def split() -> list[bytes]:
    """One split of the index's images, and one of two folds."""
    images = [f"cells/{i}.png" for i in range(4)]
    roles = ["train", "train", "validation", "test"]
    about = {"seed": 0, "ratios": [0.5, 0.25, 0.25], "folds": None, "index": "0" * 64}
    folds = {"image": images * 2, "fold": [0] * 4 + [1] * 4, "role": roles + roles[::-1]}
    single = {name: values[:4] for name, values in folds.items()}
    return [_parquet(single, about), _parquet(folds)]


def predictions() -> list[bytes]:
    """Of an own run, of another tool, with decimal commas, and with classes that are numbers."""
    own = {
        "image": [f"cells/{i}.png" for i in range(4)],
        "patient": ["P1", "P1", "P2", None],
        "label": [CLASSES[i % 2] for i in range(4)],
        "predicted": [CLASSES[i // 2] for i in range(4)],
        "prob_lymphocyte": [0.9, 0.75, 0.25, 0.5],
        "prob_monocyte": [0.1, 0.25, 0.75, 0.5],
        "role": ["test"] * 4,
        "slide": ["a", "b", "a", "b"],
    }
    return [
        _parquet(own),
        _csv(own),
        _csv({name: own[name] for name in ("label", "predicted")}),
        b"label;predicted;prob_0;prob_1\n0;1;0,25;0,75\n1;1;0,5;0,5\n",
        b"label\tpredicted\n1.0\t0\n0\t0\n",
    ]


def recipe() -> list[bytes]:
    """The recipes that come with Leukoscope, without their long tables of published figures."""
    found = [schema.raw(name) for name in schema.names()]
    for tables in found:
        tables["published"], tables["traps"] = tables["published"][:1], []
        tables["published"][0]["figures"] = {}
    return [tomli_w.dumps(t).encode() for t in found] + [b"name = 'x'\n", b"[arms.a]\nseed = 2\n"]


def contract() -> list[bytes]:
    """That of a small graph of two classes, with and without sets, novelty and a head."""
    network = {"architecture": "small", "mean": [0.5] * 3, "std": [0.25] * 3, "sha256": "0" * 64}
    origin = {"recipe": "own", "arm": "default", "protocol": "clean", "seed": 0,
              "recipe_sha256": "0" * 64, "data": "synthetic", "data_licence": "CC0",
              "data_citation": "", "data_sha256": "0" * 64, "images": 4, "patients": 2,
              "synthetic": True, "weights": [{"name": "x"}]}  # fmt: skip
    plain: dict[str, Any] = {
        "leukoscope": "0.1.0", "created": "2026-01-01T00:00:00+00:00", "name": "small",
        "version": "1", "input": {"size": [SIZE, SIZE], "mean": [0.5] * 3, "std": [0.25] * 3},
        "preprocessing": [{"step": "resize", "size": SIZE}], "classes": list(CLASSES),
        "temperature": 1.5, "prediction_sets": None, "novelty": None,
        "model": {"networks": [network], "head": [], "heat_maps": False,
                  "sha256": hashlib.sha256(graph()).hexdigest()},
        "origin": origin, "validation": {"n": 4},
    }  # fmt: skip
    head = [{"layer": "dense", "units": 4}, {"layer": "relu"}, {"layer": "dropout", "p": 0.5}]
    full = plain | {
        "prediction_sets": {"coverage": 0.9, "thresholds": [0.5, 0.5], "calibrated_on": 4},
        "novelty": _novelty(),
        "model": plain["model"] | {"head": head, "rehearsal": []},
    }
    return [json.dumps(tables).encode() for tables in (plain, full)]


def _novelty() -> dict[str, Any]:
    from leukoscope.evaluate import novelty
    from leukoscope.files import plain

    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = rng.normal(labels[:, None], 0.1, (40, 3))
    statistics = novelty.fit(features, labels, features[::2], features[::2, :2], components=2)
    return plain(statistics)


@functools.cache
def graph() -> bytes:
    """ONNX: the means of three channels as features, two of them as logits."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])

    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
    ]
    weight = numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "weight")
    made = helper.make_graph(
        nodes, "small", [value("images", 3, SIZE, SIZE)],
        [value("logits", 2), value("features", 3)], [weight],
    )  # fmt: skip
    opset = helper.make_opsetid("", 17)
    return helper.make_model(made, opset_imports=[opset], ir_version=8).SerializeToString()


def _parquet(columns: Mapping[str, list[Any]], about: Mapping[str, Any] | None = None) -> bytes:
    table = pa.table(dict(columns))
    if about:
        table = table.replace_schema_metadata({b"leukoscope": json.dumps(about)})
    out = io.BytesIO()
    pq.write_table(table, out, compression="none", use_dictionary=False, write_statistics=False)
    return out.getvalue()


def _csv(columns: Mapping[str, list[Any]]) -> bytes:
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in r) for r in rows)]
    return ("\n".join(lines) + "\n").encode()


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "index": index,
    "image": image,
    "recipe": recipe,
    "contract": contract,
    "split": split,
    "predictions": predictions,
}
