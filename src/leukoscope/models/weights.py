"""Weights carry their input contract: what they expect is read beside them, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from leukoscope.errors import InputError
from leukoscope.files import read_json, sha256_of

UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave RGB in [0, 1]


class InputFormat(BaseModel):
    """What a network expects: size (height, width), and RGB in [0, 1] before mean and std."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] = (224, 224)
    colour: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] = UNIT[0]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = UNIT[1]
    range: tuple[Literal[0], Literal[1]] = (0, 1)


class WeightsContract(BaseModel):
    """The `.json` beside a `.safetensors` file of the same stem."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    library: Literal["timm"] = "timm"
    arguments: dict[str, Any] = Field(default_factory=dict)
    classes: int | None = None
    input: InputFormat
    licence: str
    sha256: str


@dataclass(frozen=True)
class Weights:
    """Where a backbone's starting weights come from, resolved.

    `origin` is `none` (random initialisation), `auto` (timm downloads them) or `file`.
    """

    origin: Literal["none", "auto", "file"]
    input: InputFormat
    arguments: dict[str, Any]
    path: Path | None = None
    sha256: str = ""
    licence: str = ""

    def describe(self) -> dict[str, Any]:
        """For environment.json and the contract."""
        return {
            "origin": self.origin,
            "file": self.path.name if self.path else None,
            "sha256": self.sha256 or None,
            "licence": self.licence or None,
            "input": self.input.model_dump(),
            "arguments": self.arguments,
        }


def resolve(given: str, architecture: str) -> Weights:
    """Turn `--weights auto|none|PATH` into `Weights` for one architecture.

    PATH is a `.safetensors` file with its contract beside it, or a folder of such files.
    Raises InputError where the file, its contract or its checksum isn't right.
    """
    if given == "none":
        return Weights("none", InputFormat(), {})
    if given == "auto":
        return _from_timm(architecture)
    path = Path(given)
    if path.is_dir():
        path = _pick(path, architecture)
    return _from_file(path, architecture)


def read_contract(path: Path) -> WeightsContract:
    """The contract of a `.safetensors` file; InputError with the fix where it has none."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"Weights {path.name!r} are not a .safetensors file; pickled weights are never loaded",
            fix="Convert them with safetensors.torch.save_file, or use --weights auto or none.",
            field="weights",
        )
    if not path.is_file():
        raise InputError(
            f"No weights at {path}", fix="Check the path, or use --weights auto or none.",
            field="weights",
        )  # fmt: skip
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise InputError(
            f"Weights {path.name!r} have no contract beside them",
            fix=f"Write {beside.name} with architecture, arguments, input (size, colour, mean, "
            "std), licence and sha256.",
            field="weights",
        )
    try:
        return WeightsContract.model_validate(read_json(beside))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(
            f"{beside.name} is no weights contract: {where}: {first['msg']}",
            fix="It needs architecture, arguments, input (size, colour, mean, std), licence "
            "and sha256.",
            field="weights",
        ) from None


def _from_file(path: Path, architecture: str) -> Weights:
    contract = read_contract(path)
    if contract.architecture != architecture:
        raise InputError(
            f"Weights {path.name!r} are for {contract.architecture}, this arm needs {architecture}",
            fix="Choose another arm with --arm, other weights, or --weights none.",
            field="weights",
        )
    found = sha256_of(path)
    if found != contract.sha256:
        raise InputError(
            f"Weights {path.name!r} have SHA-256 {found[:12]}…, their contract says "
            f"{contract.sha256[:12]}…",
            fix="Get the file again, or correct the contract if the change was meant.",
            field="weights",
        )
    return Weights("file", contract.input, contract.arguments, path, found, contract.licence)


def _pick(folder: Path, architecture: str) -> Path:
    candidates = sorted(folder.glob("*.safetensors"))
    for path in candidates:
        if path.with_suffix(".json").is_file() and read_contract(path).architecture == architecture:
            return path
    raise InputError(
        f"No weights for {architecture} in {folder}; found: "
        f"{', '.join(p.name for p in candidates) or 'no .safetensors file'}",
        fix="Add them with their contract, or use --weights auto or none.",
        field="weights",
    )


def _from_timm(architecture: str) -> Weights:
    from leukoscope.compat import import_timm

    settings = import_timm().get_pretrained_cfg(architecture)
    if settings is None or not settings.has_weights:
        raise InputError(
            f"No pretrained weights are known for {architecture}",
            fix="Use --weights none or a file.",
            field="weights",
        )
    size = settings.input_size[1:]
    return Weights(
        "auto",
        InputFormat(size=tuple(size), mean=tuple(settings.mean), std=tuple(settings.std)),
        {},
        sha256="",
        licence=settings.license or "",
    )
