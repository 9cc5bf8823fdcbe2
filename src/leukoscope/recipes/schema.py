"""What a recipe may say. Unknown keys fail, with the nearest match, before any image is read."""

from __future__ import annotations

import hashlib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from leukoscope.bundle.contract import Head
from leukoscope.data.split import ratios as parse_ratios
from leukoscope.errors import InputError, UnknownNameError, nearest
from leukoscope.files import to_json
from leukoscope.models.classical import Classical
from leukoscope.tables import Table
from leukoscope.train.settings import Training

Protocol = Literal["clean", "published"]
PROTOCOLS: tuple[Protocol, ...] = ("clean", "published")
Flag = Literal["blur", "under_exposed", "over_exposed", "unsaturated", "debris", "empty"]


class Paper(Table):
    """Where the method comes from."""

    citation: str
    doi: str = ""
    licence: str


class Split(Table):
    """Shares of training/validation/test, and what the paper split: images, or views of them.

    `folds` K > 1: stratified K-fold cross-validation in place of the shares. Under the clean
    protocol each fold is tested once, and validated on a part of its training images; under the
    published one the held-out fold is the validation part that is scored.
    """

    clean: str = "70/15/15"
    published: str
    published_unit: Literal["image", "view"] = "image"
    folds: Annotated[int, Field(ge=1, le=100)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if self.folds > 1 and self.published_unit == "view":
            raise ValueError('`folds` hold images; set split.published_unit="image" with it')
        return self


class Views(Table):
    """Augmented copies: `count` views of an image made in advance, the first the image itself; or
    `online`, a fresh view at every pass."""

    count: Annotated[int, Field(ge=1, le=1000)] = 1
    online: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Views:
        if self.online and self.count > 1:
            raise ValueError("`count` above 1 makes views in advance; `online` must be false then")
        return self


class Model(Table):
    """Backbone and head of a network that classifies by itself."""

    backbone: str = ""
    weights: Literal["auto", "none"] = "auto"
    head: Head = []


class Network(Table):
    """One network whose activations at `layer` are deep features (see models.features)."""

    backbone: str
    layer: Literal["gap", "pool5", "fc7"]
    weights: Literal["auto", "none"] = "auto"


class Features(Table):
    """Deep features in place of a network that classifies by itself, where `networks` are named.

    `finetune`: each network is first trained as a classifier, with the head of `model` and the
    settings of `training`. `zscore`: each row of each network's features gets mean 0 and standard
    deviation 1.
    """

    networks: list[Network] = []
    finetune: bool = True
    zscore: bool = False


class PublishedTest(Table):
    """A paired test as the paper states it."""

    test: Literal["paired_t", "mcnemar"]
    a: str
    b: str
    metric: str = ""
    statistic: float | None = None
    p: float | None = None
    note: str = ""


class PublishedTable(Table):
    """One table of the paper: figures by arm and metric, a dotted path as `metrics.json` has it.

    Beside it `validation.accuracy`, `phases.1.accuracy`, `history.3.validation_accuracy` (epoch 3)
    and `environment.seconds`. `classes` k > 0: it is about data of k classes.
    """

    title: str
    classes: Annotated[int, Field(ge=0)] = 0
    figures: dict[str, dict[str, float]] = {}
    tests: list[PublishedTest] = []


class Ablation(Table):
    """Arms by the factors that are switched on; `cumulative` adds one to the arm before."""

    kind: Literal["cumulative", "factorial"]
    metric: str = "accuracy"
    arms: dict[str, list[str]]


class Recipe(Table):
    """One experiment, fully resolved: recipe file, arm and `--set` merged.

    `images_per_class` n > 0: of each class n images at most, drawn at random with the seed.
    `exclude` names flags of imaging.quality: under the published protocol images with one are left
    out altogether, under the clean one out of training and validation only, since a laboratory
    can't choose its test images. `balance`: `class_weights` in the loss; `oversample` replicates
    training images up to the largest class; `top_up` adds augmented copies instead.
    """

    name: str
    title: str
    summary: str
    paper: Paper
    dataset: str
    arm: str
    seed: Annotated[int, Field(ge=0)] = 0
    split: Split
    images_per_class: Annotated[int, Field(ge=0)] = 0
    exclude: list[Flag] = []
    preprocessing: list[dict[str, Any]]
    views: Views = Views()
    augmentation: list[dict[str, Any]] = []
    balance: Literal["none", "class_weights", "oversample", "top_up"] = "none"
    model: Model
    features: Features = Features()
    training: Training
    classical: Classical = Classical()
    published: list[PublishedTable] = []
    ablation: Ablation | None = None
    traps: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if bool(self.model.backbone) == bool(self.features.networks):
            raise ValueError("name either model.backbone or features.networks")
        return self

    @property
    def networks(self) -> list[Network]:
        """The networks that take part: the one that classifies, or those that give features."""
        single = Network(backbone=self.model.backbone, layer="gap", weights=self.model.weights)
        return self.features.networks or [single]

    @property
    def classic(self) -> bool:
        """Whether a classical model on deep features has the last word."""
        return bool(self.features.networks)

    def resolved(self) -> dict[str, Any]:
        """The tables of a recipe file that says just this, with this one arm."""
        tables = self.model_dump(exclude_none=True)
        own = [t | {"figures": {self.arm: t["figures"][self.arm]}}
               for t in tables["published"] if self.arm in t["figures"]]  # fmt: skip
        return tables | {"arms": {self.arm: {}}, "published": own}

    @property
    def sha256(self) -> str:
        """The hash of all that `resolved` says, so that a run's own recipe.toml has it too."""
        return hashlib.sha256(to_json(self.resolved()).encode()).hexdigest()


def names() -> list[str]:
    """The recipes that come with Leukoscope."""
    folder = resources.files("leukoscope.recipes")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith("toml"))


def text(name: str) -> str:
    """A recipe file as it stands: a shipped recipe by name, or an own one by path."""
    if not name.endswith(".toml"):
        if name not in names():
            raise UnknownNameError("recipe", name, names())
        return resources.files("leukoscope.recipes").joinpath(f"{name}.toml").read_text("utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(
            f"Recipe {name} can't be read: {problem}", fix="Check the path.", field="recipe"
        ) from None


def raw(name: str) -> dict[str, Any]:
    """A recipe file's tables as they stand, neither merged nor checked."""
    try:
        return tomllib.loads(text(name))
    except (ValueError, RecursionError) as problem:  # also a number of 5,000 digits
        raise InputError(
            f"Recipe {name} is not TOML: {problem}", fix="Correct that line.", field="recipe"
        ) from None


def arms(tables: Mapping[str, Any]) -> list[str]:
    """The arms of a recipe, its default first; InputError unless they are tables."""
    _refuse_values(tables, "arms")
    return list(tables.get("arms", {})) or ["default"]


def resolve(name: str, *, arm: str | None = None, settings: Sequence[str] = ()) -> Recipe:
    """Recipe `name` with one arm's overrides and `key=value` settings merged in and checked.

    Raises InputError naming the key, what was got, what is allowed and the nearest match.
    """
    tables = raw(name)
    tables.pop("protocol", None)  # a run's recipe.toml states these two; it is a recipe as well
    arm = arm or tables.pop("arm", None) or arms(tables)[0]
    if not isinstance(arm, str) or arm not in arms(tables):
        raise UnknownNameError("arm", str(arm), arms(tables))
    overrides = tables.pop("arms", {}).get(arm, {})
    tables = _merge(tables, overrides) | {"arm": arm}
    for setting in settings:
        _set(tables, setting)
    return validate(tables)


def _refuse_values(tables: Mapping[str, Any], key: str) -> None:
    """InputError unless this key, where it is there, is a table of tables."""
    value = tables.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise InputError(
            f"Recipe key {key!r} is {value!r}; allowed: a table an arm",
            fix=f"Write [{key}.NAME] above the arm's settings.",
            field=key,
        )


def validate(tables: Mapping[str, Any]) -> Recipe:
    """A Recipe from its tables; the first fault as one sentence."""
    from leukoscope.imaging.pipeline import check as check_preprocessing

    try:
        recipe = Recipe.model_validate(tables)
    except ValidationError as problem:
        raise _explain(problem) from None
    check_preprocessing(recipe.preprocessing)
    for share in (recipe.split.clean, recipe.split.published):
        parse_ratios(share)
    return recipe


def _explain(problem: ValidationError) -> InputError:
    # A misspelt key makes its right spelling missing too; the misspelling is what to say.
    error = min(problem.errors(), key=lambda e: e["type"] != "extra_forbidden")
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        key, known = str(error["loc"][-1]), _known(error["loc"][:-1])
        return InputError(
            f"Unknown recipe key {where!r}; allowed there: {', '.join(known) or 'nothing'}",
            fix=f"Did you mean {nearest(key, known)!r}?" if nearest(key, known) else "Remove it.",
            field=where,
        )
    table = isinstance(error["input"], Mapping)
    got = "" if error["type"] == "missing" or table else f", got {error['input']!r}"
    said = error["msg"].removeprefix("Value error, ")
    return InputError(
        f"Recipe key {where!r}: {said[:1].lower()}{said[1:]}{got}"
        if where
        else f"The recipe: {said}",
        fix="Correct it in the recipe or in --set.",
        field=where,
    )


def _known(place: Sequence[int | str]) -> list[str]:
    """The keys that the table at this place takes; an entry of a list has its place as a number."""
    model: Any = Recipe
    for part in place:
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
            inner = [a for a in typing.get_args(model) if isinstance(a, type)]
            model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return list(getattr(model, "model_fields", {}))


def paths(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key that a recipe knows, e.g. `training.epochs`."""
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [f"{prefix}{name}", *paths(field.annotation, f"{prefix}{name}.")]
        else:
            found.append(f"{prefix}{name}")
    return found


_FIXED = ("name", "arm", "published", "ablation")  # what a recipe is can't be set for one run


def _set(tables: dict[str, Any], setting: str) -> None:
    """Apply one `key=value`: a dotted key, or its last part where that is unambiguous."""
    key, separator, text = setting.partition("=")
    key = key.strip()
    if not separator:
        raise InputError(
            f"Setting {setting!r} has no '='", fix="Write --set training.epochs=5.", field="set"
        )
    known = [path for path in paths() if path.split(".")[0] not in _FIXED]
    matches = [path for path in known if path == key] or [
        path for path in known if path.split(".")[-1] == key
    ]
    if len(matches) != 1:
        if matches:
            raise InputError(
                f"Setting {key!r} is ambiguous: {', '.join(matches)}",
                fix="Write it with its table.",
                field="set",
            )
        raise UnknownNameError("setting", key, known, field="set")
    *parents, last = matches[0].split(".")
    target = tables
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise InputError(
                f"Recipe key {parent!r} is {target!r}; it must be a table before "
                f"{matches[0]!r} can be set",
                fix="Correct it in the recipe or in --set.",
                field=parent,
            )
    target[last] = _value(text.strip())


def _value(text: str) -> Any:
    """A TOML value; what isn't one is taken as a bare string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if deeper else value
    return merged
