"""Write the pages of the documentation that are made from the code.

    python docs/generate.py

`pages` gives them as text, so that tests/test_docs.py can tell whether a page is stale. Everything
comes from the registries, the recipe files and the command line itself: what is registered is
documented, and nothing else is.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main
from generate_recipes import recipe, recipes
from generate_text import anchor, documentation, escaped, prose, table, value
from pydantic import TypeAdapter

from leukoscope.cli.commands import app
from leukoscope.data.datasets import datasets
from leukoscope.data.layouts import layouts
from leukoscope.evaluate import metrics as metric_functions
from leukoscope.evaluate.intervals import SLOW_RESAMPLES as SLOW
from leukoscope.evaluate.intervals import bootstrap
from leukoscope.evaluate.metrics import ADDITIVE, PER_CLASS, SCALARS, metrics
from leukoscope.imaging.augmentation_ops import augmentations
from leukoscope.imaging.pipeline import transforms
from leukoscope.recipes import schema
from leukoscope.registry import keyword_parameters
from leukoscope.review.settings import PREFIX, Settings

RESAMPLES = keyword_parameters(bootstrap)["resamples"].default
DOCS = Path(__file__).resolve().parent
HEAD = "<!-- Made by docs/generate.py: edit the code it is made from, not this page. -->\n\n"


def pages() -> dict[str, str]:
    """Every generated page: its path below docs/ and its text."""
    found = {
        "commands.md": commands(),
        "recipes.md": recipes(),
        "layouts.md": layout_page(),
        "datasets.md": dataset_page(),
        "transforms.md": transform_page(),
        "metrics.md": metric_page(),
        "settings.md": setting_page(),
    }
    found |= {f"recipes/{name}.md": recipe(name) for name in schema.names()}
    return {name: HEAD + text.rstrip() + "\n" for name, text in found.items()}


# --- the command line ---------------------------------------------------------------------------


def commands() -> str:
    """docs/commands.md"""
    group = typer.main.get_command(app)
    parts = [
        "# Commands",
        "`leukoscope --help` and `leukoscope train --help` (or any other command's) print the same "
        "on the terminal. The functions of the same names in `leukoscope.api` do the work; the "
        "command line only calls them.",
        table(
            ("exit code", "meaning"),
            [
                ("0", "done"),
                ("1", "a bug in Leukoscope"),
                (
                    "2",
                    "bad input or usage: one sentence on stderr says what was got, what is "
                    "allowed and the fix",
                ),
                ("3", "a leak: the same patient or picture on both sides of a split"),
            ],
        ),
        "Tables and sentences go to stdout; errors, remarks and progress bars go to stderr. "
        "`LEUKOSCOPE_DEBUG=1` shows where a bug happened. `LEUKOSCOPE_CACHE` names the folder for "
        "views and features that are kept between runs.",
        *(_command(name, command) for name, command in group.commands.items()),  # type: ignore[attr-defined]
    ]
    return "\n\n".join(parts)


def _command(name: str, command: Any) -> str:
    shown = [p for p in command.params if p.name != "help" and not p.hidden]
    rows = [(_invocation(p), _note(p)) for p in shown]
    required = [p for p in shown if p.required]
    given = [p for p in required if p.param_type_name == "argument"]
    options = [p for p in required if p.param_type_name == "option"]
    call = [p.name.upper() for p in given] + [f"{p.opts[0]} {p.name.upper()}" for p in options]
    usage = " ".join(["leukoscope", name, *call])
    parts = [f"## {name}", prose(command.help), f"```\n{usage}\n```"]
    if rows:
        parts.append(table(("argument or option", "meaning"), rows))
    return "\n\n".join(parts)


def _invocation(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}{'…' if parameter.nargs == -1 else ''}`"
    names = ", ".join(parameter.opts)
    return f"`{names}`" if parameter.is_flag else f"`{names} {parameter.name.upper()}`"


def _note(parameter: Any) -> str:
    words = [(parameter.help or "").rstrip(".")]
    if parameter.required:
        words.append("required")
    elif parameter.default is not None and parameter.default is not False:
        words.append(f"default `{parameter.default}`")
    return "; ".join(escaped(word) for word in words if word) + "."


# --- registries ----------------------------------------------------------------------------------


def layout_page() -> str:
    """docs/layouts.md"""
    parts = [
        "# Layouts",
        "A layout says how a folder (or a csv or npz file) is read: which images there are, of "
        "which class, and of which patient where that is known. `leukoscope index` finds out by "
        "itself (`--layout auto`): it takes the data set whose folder and file names fit, and "
        "plain class folders where none does. A tree that is not laid out as said is refused with "
        "what was expected and what was found.",
        "```\nleukoscope index my-cells -o cells.parquet --layout folder\n```",
    ]
    for name in layouts:
        used = [d.name for d in datasets.values() if d.layout == name]
        links = ", ".join(f"[{data}](datasets.md#{anchor(data)})" for data in used)
        parts += [f"## {name}", prose(documentation(layouts[name], name))]
        parts += [f"Used by: {links}."] if used else []
    return "\n\n".join(parts)


def dataset_page() -> str:
    """docs/datasets.md"""
    rows = [
        (f"[{d.name}](#{anchor(d.name)})", str(len(d.classes) or "not fixed"),
         "not fixed" if d.n_images is None else f"{d.n_images:,}",
         "yes" if d.patients else "no", d.licence)
        for d in datasets.values()
    ]  # fmt: skip
    parts = [
        "# Data sets",
        "`leukoscope datasets` prints the same. Leukoscope holds and fetches no images: get them "
        "from their source, under their licence, and index the folder. `patients` says whether the "
        "files tell patients apart; where they do not, no split can keep patients together.",
        table(("name", "classes", "images", "patients", "licence"), rows),
    ]
    for d in datasets.values():
        facts = [
            ("classes", ", ".join(d.classes) or "not fixed"),
            ("images", "not fixed" if d.n_images is None else f"{d.n_images:,}"),
            ("patients", "told apart" if d.patients else "not told apart"),
            ("layout", f"[{d.layout}](layouts.md#{anchor(d.layout)})"),
            ("licence", d.licence),
            ("cite", d.citation),
            ("get it", d.how),
        ]
        parts += [f"## {d.name}", f"{escaped(d.title)}.", table(("", ""), facts)]
    return "\n\n".join(parts)


def transform_page() -> str:
    """docs/transforms.md"""
    parts = [
        "# Transforms",
        "What a recipe may do to an image: preprocessing, the same for training and inference, and "
        "augmentation, for training alone. Both are lists of tables in the recipe file.",
        "## Preprocessing",
        "```toml\n[[preprocessing]]\nstep = \"resize\"\nsize = 224\n```",
        "Each step takes and gives 8-bit RGB and is deterministic. The whole chain is checked "
        "before any image is read, travels in the bundle's `contract.json` as data, and is run by "
        "the same code in training and in `leukoscope predict`.",
        *_entries(transforms),
        "## Augmentation",
        "```toml\n[[augmentation]]\noperation = \"rotate\"\np = 0.5\ndegrees = [-20, 20]\n```",
        "`p` is the probability that an image gets the operation: 1 unless given, 0.5 for the two "
        "flips. A range is `[low, high]`, drawn uniformly for each image; a plain number means "
        "always that value, except for angles, shifts and hue, where `x` means `[-x, x]`. Lengths "
        "are in pixels of the image augmented, fractions are of its side. Everything drawn for an "
        "image comes from its own generator, so a view does not depend on its batch. Geometric "
        "operations in a row are done in one interpolation; `fill` says what lies outside the "
        "image: `reflect`, `edge`, `white` or `black`.",
        *_entries(augmentations),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _entries(registry: Any) -> Iterator[str]:
    for name in registry:
        function = registry[name]
        yield f"### {name}"
        yield prose(documentation(function, name))
        hints = typing.get_type_hints(function, include_extras=True)
        rows = [
            (f"`{key}`", allowed(TypeAdapter(hints[key]).json_schema()),
             "required" if p.default is inspect.Parameter.empty else value(p.default))
            for key, p in keyword_parameters(function).items()
        ]  # fmt: skip
        yield table(("setting", "allowed", "default"), rows) if rows else "No settings."


def allowed(schema_: Mapping[str, Any]) -> str:
    """A JSON schema of one setting in words."""
    if "anyOf" in schema_:
        return " or ".join(dict.fromkeys(map(allowed, schema_["anyOf"])))
    if "enum" in schema_ or "const" in schema_:
        return ", ".join(f"`{name}`" for name in schema_.get("enum", [schema_.get("const")]))
    kind = schema_.get("type")
    names = {
        "null": "none",
        "integer": "whole number",
        "string": "text",
        "boolean": "true or false",
    }
    if kind == "array":
        number = f"{schema_['minItems']} " if "minItems" in schema_ else ""
        return f"list of {number}{allowed(schema_.get('items', {})).replace('number', 'numbers')}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to",
             "exclusiveMaximum": "below"}  # fmt: skip
    bounds = [f"{word} {schema_[key]:g}" for key, word in words.items() if key in schema_]
    return " ".join([names.get(str(kind), str(kind or "anything")), *bounds])


def metric_page() -> str:
    """docs/metrics.md"""
    order = [*SCALARS, *(name for name in metrics if name not in SCALARS)]
    rows = [
        (f"`{name}`", prose(_metric_text(name)), f"{RESAMPLES if name in ADDITIVE else SLOW:,}")
        for name in order
    ]
    return "\n\n".join(
        [
            "# Metrics",
            "Every metric of `metrics.json`. What is undefined is null there, with its reason "
            "under `undefined`, and never 0. Macro averages run over the classes for which the "
            "per-class value is defined; a class left out is named under `notes`. "
            "[Statistics](statistics.md) says how the intervals are computed; the last column is "
            "the number of bootstrap resamples behind them.",
            table(("metric", "what it is", "resamples"), rows),
            "## Per class",
            "Each class against the rest: TP and FN are its images that were and were not "
            "predicted as it, FP and TN those of other classes likewise. Precision is "
            "TP / (TP + FP), recall TP / (TP + FN), specificity TN / (TN + FP), F1 "
            "2 TP / (2 TP + FP + FN), one-vs-rest accuracy (TP + TN) / n. `roc_auc` is the area "
            "under the ROC curve of the class's probability, ties counted half; `support` is the "
            "number of its images.",
            table(("value", "undefined where"),
                  [*((f"`{name}`", why or "never") for name, (_, why) in PER_CLASS.items()),
                   ("`roc_auc`", "no image has this label, or every image has it, or no "
                    "probabilities were given"),
                   ("`support`", "never")]),
        ]
    )  # fmt: skip


def setting_page() -> str:
    """docs/settings.md"""
    rows = [
        (f"`{PREFIX}{name.upper()}`", prose(" ".join((field.description or "").split())),
         "required" if field.is_required() else f"`{field.default}`" if field.default else "")
        for name, field in Settings.model_fields.items()
    ]  # fmt: skip
    return "\n\n".join(
        [
            "# Settings of the review application",
            "Given as environment variables; some as options of "
            "[`leukoscope serve`](commands.md#serve) too, which then count. Sizes are in bytes. "
            "[Running the review application](operations.md) says what they are for.",
            table(("variable", "what it is", "default"), rows),
        ]
    )


def _metric_text(name: str) -> str:
    """A metric's docstring: of the registered function, or of the one it was made from."""
    made_from = getattr(metric_functions, name, None)
    return documentation(metrics[name] if metrics[name].__doc__ else made_from, name)  # type: ignore[arg-type]


def main() -> None:
    """Write every generated page, and remove pages of recipes that are gone."""
    made = pages()
    for name, text in made.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (DOCS / "recipes").glob("*.md"):
        if f"recipes/{path.name}" not in made:
            path.unlink()
    sys.stdout.write(f"{len(made)} pages in {DOCS}\n")


if __name__ == "__main__":
    main()
