"""The contract of a bundle: all that inference reads, as plain data, checked when loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from leukoscope.errors import InputError
from leukoscope.files import read_json, sha256_of
from leukoscope.imaging.pipeline import check as check_chain

GRAPH = "model.onnx"
CONTRACT = "contract.json"
OUTPUTS = ("logits", "features", "feature_map", "class_gradient")


class Part(BaseModel):
    """Plain data with no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(Part):
    """Images as the graph takes them: float32 (n, 3, height, width), (RGB / 255 - mean) / std."""

    size: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]]
    colour: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float]
    std: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ]


class PredictionSets(Part):
    """Class-conditional conformal sets: a class is in where 1 - its probability is at most this."""

    coverage: Annotated[float, Field(gt=0, lt=1)]
    thresholds: list[float]
    calibrated_on: int


class Origin(Part):
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
    weights: dict[str, Any]


class Dense(Part):
    """A fully connected layer."""

    layer: Literal["dense"]
    units: Annotated[int, Field(ge=1, le=65536)]


class Dropout(Part):
    """Zeroes a share p of its inputs in training."""

    layer: Literal["dropout"]
    p: Annotated[float, Field(ge=0, lt=1)]


class Relu(Part):
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


class Model(Part):
    """The network behind the graph, enough to build it again in torch."""

    architecture: str
    arguments: dict[str, Any] = {}
    head: Head
    precision: Literal["fp32", "int8"] = "fp32"
    sha256: str = ""


class Contract(Part):
    """Everything inference needs beside the graph; the server reads nothing else."""

    format: Literal[1] = 1
    leukoscope: str
    created: str
    name: str
    version: str
    input: Input
    preprocessing: list[dict[str, Any]]
    classes: Annotated[list[str], Field(min_length=2)]
    temperature: Annotated[float, Field(gt=0)]
    prediction_sets: PredictionSets | None
    novelty: dict[str, Any] | None
    model: Model
    origin: Origin
    validation: dict[str, Any]

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        sets = self.prediction_sets
        if sets is not None and len(sets.thresholds) != len(self.classes):
            raise ValueError("prediction_sets needs one threshold per class")
        return self


def read(folder: Path) -> Contract:
    """The checked contract in a bundle's or a run's model folder; InputError otherwise."""
    path = _present(folder, CONTRACT)
    try:
        contract = Contract.model_validate(read_json(path))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contract"
        raise InputError(
            f"{path} is damaged: {where}: {first['msg']}",
            fix="Export the bundle again.",
            field=where,
        ) from None
    check_chain(contract.preprocessing)
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
