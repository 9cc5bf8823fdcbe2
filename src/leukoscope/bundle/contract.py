"""The contract of a bundle: all that inference reads, as plain data, checked when loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from leukoscope.errors import InputError
from leukoscope.evaluate.calibration import TEMPERATURES
from leukoscope.files import plain, read_json, sha256_of, write_json
from leukoscope.imaging.pipeline import check as check_chain
from leukoscope.tables import Table

GRAPH = "model.onnx"
CONTRACT = "contract.json"
OUTPUTS = ("logits", "features", "feature_map", "class_gradient")
"""What a graph gives; the last two only where heat maps can be made from them."""


# Beyond these limits, which no images come near, arithmetic in float32 overflows.
Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
Spread = Annotated[float, Field(ge=1e-6, le=1e6)]
Channels = tuple[Mean, Mean, Mean]
Spreads = tuple[Spread, Spread, Spread]
if TYPE_CHECKING:
    Plain = dict[str, Any]
else:
    Plain = dict[str, JsonValue]  # whose numbers are finite, as everywhere in a `Table`


class Input(Table):
    """Images as the graph takes them: float32 (n, 3, height, width), (RGB / 255 - mean) / std."""

    size: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]]
    colour: Literal["RGB"] = "RGB"
    mean: Channels
    std: Spreads


class PredictionSets(Table):
    """Class-conditional conformal sets: a class is in where 1 - its probability is at most this.

    `calibrated_on` counts images: of validation, and of training where they were out of fold.
    """

    coverage: Annotated[float, Field(gt=0, lt=1)]
    thresholds: list[float]
    calibrated_on: int
    out_of_fold: int = 0


class Origin(Table):
    """Which recipe and which data made the model."""

    recipe: str
    arm: str
    protocol: str
    seed: int
    recipe_sha256: str
    data: str
    data_licence: str
    data_citation: str
    data_sha256: str
    images: int
    patients: int | None
    synthetic: bool
    weights: list[dict[str, Any]]


class Dense(Table):
    """A fully connected layer."""

    layer: Literal["dense"]
    units: Annotated[int, Field(ge=1, le=65536)]


class Dropout(Table):
    """Zeroes a share p of its inputs in training."""

    layer: Literal["dropout"]
    p: Annotated[float, Field(ge=0, lt=1)]


class Relu(Table):
    """max(0, x)."""

    layer: Literal["relu"]


_layer: TypeAdapter[Any] = TypeAdapter(
    Annotated[Dense | Dropout | Relu, Field(discriminator="layer")]
)


def _checked_head(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for place, layer in enumerate(layers, start=1):
        try:
            _layer.validate_python(layer)
        except ValidationError as problem:
            error = problem.errors()[0]
            where = " ".join(map(str, error["loc"]))
            raise ValueError(f"layer {place}: {where} {error['msg']}") from None
    return layers


Head = Annotated[list[dict[str, Any]], AfterValidator(_checked_head)]
"""A head's layers before the last dense one, as plain data: dense, dropout and relu."""


class Network(Table):
    """One network: what timm or models.backbones builds, and the input its weights were made for.

    `layer` names the deep features that are taken from it; "" where it classifies by itself.
    `classifies`: its own head was trained. `file` is its weights in a run's model folder.
    """

    architecture: str
    arguments: dict[str, Any] = {}
    layer: str = ""
    classifies: bool = True
    mean: Channels
    std: Spreads
    file: Annotated[str, Field(pattern=r"^\w[\w.-]*\.safetensors$")] = "model.safetensors"
    sha256: str = ""


class Model(Table):
    """The network, or those whose deep features `classical` classifies, and the graph.

    `zscore`: rows of each network's features are standardised. `heat_maps`: the graph also gives
    the last feature map and each class's gradient, which Grad-CAM needs. `classical` is the
    SHA-256 of `classical.skops` in a run's model folder, "" where there is none. `rehearsal` is
    what an int8 graph answered to `inference.noise` where it was judged.
    """

    networks: Annotated[list[Network], Field(min_length=1)]
    head: Head
    zscore: bool = False
    classical: str = ""
    heat_maps: bool = True
    precision: Literal["fp32", "int8"] = "fp32"
    rehearsal: list[float] = []
    sha256: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs, in order."""
        return OUTPUTS if self.heat_maps else OUTPUTS[:2]

    @property
    def described(self) -> str:
        """The architecture in words."""
        names = " + ".join(f"{n.architecture} {n.layer}".strip() for n in self.networks)
        return f"classical model on {names}" if self.classical else names


class Contract(Table):
    """Everything inference needs beside the graph; the server reads nothing else."""

    format: Literal[1] = 1
    leukoscope: str
    created: str
    name: str
    version: str
    input: Input
    preprocessing: list[dict[str, Any]]
    classes: Annotated[list[str], Field(min_length=2)]
    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])]
    prediction_sets: PredictionSets | None
    novelty: Plain | None
    model: Model
    origin: Origin
    validation: Plain

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        sets = self.prediction_sets
        if sets is not None and len(sets.thresholds) != len(self.classes):
            raise ValueError("prediction_sets needs one threshold per class")
        return self


def seal(stated: Mapping[str, Any]) -> dict[str, Any]:
    """A contract's plain data with `sha256`, that of all the rest, so that no edit goes unseen."""
    rest = {key: value for key, value in plain(dict(stated)).items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write(contract: Contract, folder: Path) -> None:
    """Write the contract, sealed, into a bundle's or a run's model folder."""
    write_json(folder / CONTRACT, seal(contract.model_dump()))


def read(folder: Path, *, sealed: bool = False) -> Contract:
    """The checked contract in a bundle's or a run's model folder; InputError otherwise.

    `sealed`: one without its own checksum is refused too, as every bundle's has it.
    """
    path = _present(folder, CONTRACT)
    stated = read_json(path)
    checksum = stated.pop("sha256", None) if isinstance(stated, dict) else None
    try:
        contract = Contract.model_validate(stated)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contract"
        raise InputError(
            f"{path} is damaged: {where}: {first['msg']}",
            fix="Export the bundle again.",
            field=where,
        ) from None
    check_chain(contract.preprocessing)
    if (sealed or checksum is not None) and checksum != seal(stated)["sha256"]:
        raise InputError(
            f"{path} was changed after it was written (its own SHA-256 "
            f"{'is missing' if checksum is None else 'differs'})",
            fix="Export the bundle again, or get it anew from its source.",
            field="bundle",
        )
    return contract


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError(
            f"{folder} is no bundle: it holds no {name}",
            fix="Make one with: leukoscope export RUN -o BUNDLE",
            field="bundle",
        )
    return path


def verify_graph(folder: Path, contract: Contract) -> Path:
    """The path of the graph, once its SHA-256 is the one the contract states."""
    path = _present(folder, GRAPH)
    if sha256_of(path) != contract.model.sha256:
        raise InputError(
            f"{path} isn't the file its contract was written for (SHA-256 differs)",
            fix="Export the bundle again, or get it anew from its source.",
            field="bundle",
        )
    return path
