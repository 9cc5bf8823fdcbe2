"""Weights carry their input contract: what they expect is read beside them, never guessed.

A timm name may carry the tag of a weight set (`convnext_base.fb_in1k`); without one, timm's default
for that architecture is taken. `convnext_base.tv_in1k` and `alexnet` are torchvision's sets, which
timm doesn't have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from leukoscope.errors import InputError
from leukoscope.files import read_json, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave RGB in [0, 1]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BODIES = {"retinanet": "resnet50", "centernet": "resnet50"}
"""Networks of our own that are built round another's feature maps, and whose weights they take."""
TORCHVISION = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "convnext_base.tv_in1k": "convnext_base-6075fbad.pth",
}
"""torchvision's IMAGENET1K_V1 sets; a file's name ends in the start of its SHA-256."""
TORCHVISION_URL = "https://download.pytorch.org/models/"


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
    library: Literal["timm", "torchvision", "leukoscope"] = "timm"
    arguments: dict[str, Any] = Field(default_factory=dict)
    classes: int | None = None
    input: InputFormat
    licence: str
    sha256: str


@dataclass(frozen=True)
class Weights:
    """Where a backbone's starting weights come from, resolved.

    `origin` is `none` (random initialisation), `auto` (timm or torchvision downloads them) or
    `file`. `architecture` is whose they are: for a detector its body's or its own.
    """

    origin: Literal["none", "auto", "file"]
    input: InputFormat
    arguments: dict[str, Any]
    path: Path | None = None
    sha256: str = ""
    licence: str = ""
    architecture: str = ""
    library: str = "timm"

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
    RetinaNet and CenterNet take the weights of their ResNet50 body, or a file of their own.
    Raises InputError where the file, its contract or its checksum isn't right.
    """
    if given == "none":
        return Weights("none", InputFormat(), {})
    if given == "auto":
        wanted = BODIES.get(architecture, architecture)
        return _from_torchvision(wanted) if wanted in TORCHVISION else _from_timm(wanted)
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
    if not fits(contract.architecture, architecture):
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
    return Weights(
        "file",
        contract.input,
        contract.arguments,
        path,
        found,
        contract.licence,
        contract.architecture,
        contract.library,
    )


def base_name(architecture: str) -> str:
    """A backbone's name without the tag of its weight set: `convnext_base.fb_in1k` without it."""
    return architecture.split(".", 1)[0]


def fits(stated: str, wanted: str) -> bool:
    """Whether weights of architecture `stated` are such as backbone `wanted` takes.

    A tag on one side only is no contradiction; two different tags are.
    """
    wanted = wanted if base_name(stated) == wanted else BODIES.get(wanted, wanted)
    if "." in stated and "." in wanted:
        return stated == wanted
    return base_name(stated) == base_name(wanted)


def _pick(folder: Path, architecture: str) -> Path:
    candidates = sorted(folder.glob("*.safetensors"))
    for path in candidates:
        beside = path.with_suffix(".json").is_file()
        if beside and fits(read_contract(path).architecture, architecture):
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
            f"No weights of {architecture} can be downloaded",
            fix=f"Give --weights PATH (.safetensors whose .json states architecture "
            f"{architecture}), or --weights none.",
            field="weights",
        )
    return Weights(
        "auto",
        InputFormat(
            size=tuple(settings.input_size[1:]),
            mean=tuple(settings.mean),
            std=tuple(settings.std),
        ),
        {},
        licence=settings.license or "",
        architecture=architecture,
    )


def _from_torchvision(architecture: str) -> Weights:
    return Weights(
        "auto",
        InputFormat(mean=IMAGENET[0], std=IMAGENET[1]),
        {},
        licence="BSD-3-Clause",
        architecture=architecture,
        library="torchvision",
    )


def not_downloaded(architecture: str, problem: Exception) -> InputError:
    """The error where weights can't be fetched: whatever a client raises, the fix is the same."""
    reason = str(problem).strip().splitlines() or [type(problem).__name__]
    return InputError(
        f"The weights of {architecture} can't be downloaded: {reason[0][:160]}",
        fix="Connect to the internet, or give --weights PATH (.safetensors with its .json), "
        "or --weights none.",
        field="weights",
    )


def read_state(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a weights file, or of torchvision's download, by the names we use.

    Raises InputError where the file is no safetensors file or can't be downloaded.
    """
    if weights.path is None:
        state = _download(weights.architecture)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(weights.path)
        except SafetensorError as problem:
            raise InputError(
                f"{weights.path.name} is no safetensors file: {problem}",
                fix="Get it again.",
                field="weights",
            ) from None
    if weights.library == "torchvision":
        return _from_torchvision_names(weights.architecture, state)
    return state


def _download(architecture: str) -> dict[str, Tensor]:
    """torchvision's weights, kept in torch's own cache; the checksum is verified at every load."""
    import torch

    name = TORCHVISION[architecture]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(TORCHVISION_URL + name, str(path), progress=False)
    except (OSError, RuntimeError) as problem:
        raise not_downloaded(architecture, problem) from None
    stated = path.stem.rsplit("-", 1)[1]
    if not sha256_of(path).startswith(stated):
        raise InputError(
            f"{path} has another SHA-256 than {stated}…, which its name states",
            fix="Delete it, so that it is downloaded again.",
            field="weights",
        )
    return torch.load(path, map_location="cpu", weights_only=True)


_CONVNEXT = (
    (r"features\.0\.", "stem."),
    (r"classifier\.0\.", "head.norm."),
    (r"classifier\.2\.", "head.fc."),
    (r"layer_scale$", "gamma"),
    (r"block\.0\.", "conv_dw."),
    (r"block\.2\.", "norm."),
    (r"block\.3\.", "mlp.fc1."),
    (r"block\.5\.", "mlp.fc2."),
)


def _from_torchvision_names(architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's tensors by timm's names, where the two differ: ConvNeXt and VGG."""
    name = base_name(architecture)
    if name.startswith("convnext"):
        return {_convnext_name(key): _flat_scale(key, value) for key, value in state.items()}
    if name.startswith("vgg"):
        layers = {"classifier.0": ("pre_logits.fc1", 7), "classifier.3": ("pre_logits.fc2", 1)}
        for before, (after, side) in layers.items():
            weight = state.pop(f"{before}.weight")
            state[f"{after}.weight"] = weight.reshape(len(weight), -1, side, side)
            state[f"{after}.bias"] = state.pop(f"{before}.bias")
        return {key: value for key, value in state.items() if not key.startswith("classifier.")}
    return state


def _convnext_name(key: str) -> str:
    for pattern, replacement in _CONVNEXT:
        key = re.sub(pattern, replacement, key)
    # Odd parts of `features` are stages of blocks, even ones the downsampling before the next.
    found = re.match(r"features\.(\d)\.(.*)", key)
    if not found:
        return key
    part, rest = int(found[1]), found[2]
    return f"stages.{part // 2}.{'blocks' if part % 2 else 'downsample'}.{rest}"


def _flat_scale(key: str, value: Tensor) -> Tensor:
    return value.flatten() if key.endswith("layer_scale") else value
