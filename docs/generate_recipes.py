"""The page of a recipe, made from its TOML file: method, settings, arms, figures, traps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from generate_text import anchor, escaped, prose, summary, table, value

from leukoscope.imaging.augmentation_ops import DEFAULT_P, augmentations
from leukoscope.imaging.pipeline import transforms
from leukoscope.recipes import schema


def recipes() -> str:
    """docs/recipes.md"""
    rows = []
    for name in schema.names():
        tables = schema.raw(name)
        arms = ", ".join(f"`{arm}`" for arm in schema.arms(tables))
        data = f"[{tables['dataset']}](datasets.md#{anchor(tables['dataset'])})"
        rows.append((f"[{name}](recipes/{name}.md)", tables["summary"], arms, data))
    return "\n\n".join(
        [
            "# Recipes",
            "A recipe is one published method as one TOML file. `leukoscope recipes` lists them, "
            "`leukoscope train` runs one arm, `leukoscope reproduce` runs every arm under both "
            "[protocols](protocols.md).",
            table(("recipe", "what it is", "arms (the default first)", "data set of the paper"),
                  rows),
            "An own recipe is an own `.toml` file, given by its path in place of the name. Any "
            "setting can be overridden for one run with `--set`, for example "
            "`--set training.epochs=3`, a list as a whole; a key that no recipe knows "
            "fails before any image is read. "
            "These are all keys:",
            ", ".join(f"`{path}`" for path in schema.paths()) + ".",
        ]
    )  # fmt: skip


def recipe(name: str) -> str:
    """docs/recipes/NAME.md"""
    tables, text = schema.raw(name), schema.text(name)
    plan = schema.resolve(name)
    notes = toml_comments(text)
    data = tables["dataset"]
    doi = f" doi [{plan.paper.doi}](https://doi.org/{plan.paper.doi})." if plan.paper.doi else ""
    open_points = [f"- `{place}`: {escaped(note)}" for place, note in notes.items() if place]
    parts = [
        f"# {tables['title']}",
        prose(tables["summary"]),
        f"Paper: {escaped(plan.paper.citation)}{doi} Licence of the paper: {plan.paper.licence}.",
        f"Data set of the paper: [{data}](../datasets.md#{anchor(data)}). The recipe file: "
        f"[{name}.toml](../../src/leukoscope/recipes/{name}.toml).",
        f"```\nleukoscope train {name} cells.parquet -o run\n"
        f"leukoscope reproduce {name} cells.parquet -o reproduction\n```",
        "## The method, in order",
        "\n".join(f"{n}. {step}" for n, step in enumerate(_method(plan), start=1)),
        "## Settings",
        f"Of the default arm, `{plan.arm}`. Change one with `--set key=value`, a list as a whole.",
        table(("setting", "value", "note"), _settings(plan, tables, notes)),
        "## Arms",
        table(("arm", "what differs from the settings above"), _arms(tables)),
        "## Published figures",
        "As the paper states them; fractions, `log_loss` in nats. They stand beside the measured "
        "figures in every report.",
        _published(tables),
        "## What the paper leaves open, and what was chosen",
        "The comments of the recipe file, each at the setting it explains.",
        "\n".join(open_points) or "The recipe file has no comments.",
        "## Traps",
        "\n".join(f"- {escaped(trap)}" for trap in tables.get("traps", [])) or "None known.",
    ]
    return "\n\n".join(parts)


def _method(plan: schema.Recipe) -> Iterator[str]:
    """What a run does, in the order it does it, under the default arm."""
    unit = {"view": "views", "image": "images"}[plan.split.published_unit]
    yield (
        f"Split. Clean protocol: {plan.split.clean} of the images into training, validation and "
        "test; whole patients and duplicates stay together, classes are kept in proportion. "
        f"Published protocol: {plan.split.published} of the {unit}, shuffled at random."
    )
    for step in plan.preprocessing:
        about = summary(transforms[step["step"]], step["step"])
        yield f"Preprocessing {_link(step['step'])}{_with(step, 'step')}: {about}."
    if plan.views.count > 1:
        yield (
            f"Views. {plan.views.count} of every training image are made in advance: the first is "
            "the image itself, the others pass through the augmentation below. Validation and "
            "test images have one view, themselves"
            + (
                ". Under the published protocol every image has all of them."
                if plan.split.published_unit == "view"
                else "."
            )
        )
    for entry in plan.augmentation:
        name = entry["operation"]
        p = entry.get("p", DEFAULT_P.get(name, 1.0))
        rest = _with({k: v for k, v in entry.items() if k != "p"}, "operation")
        about = summary(augmentations[name], name)
        yield f"Augmentation {_link(name)} with probability {p:g}{rest}: {about}."
    yield (
        f"Backbone `{plan.model.backbone}`, weights `{plan.model.weights}`, "
        + ("frozen: it runs once per view and only the head trains" if plan.model.frozen
           else "trained as a whole")
        + "; global average pooling."
    )  # fmt: skip
    head = [f"{layer['layer']}{_with(layer, 'layer')}" for layer in plan.model.head]
    yield f"Head: {', '.join([*head, 'dense'])} to one logit a class, softmax."
    training = plan.training
    steps = f"{training.steps_per_epoch} steps" if training.steps_per_epoch else "every view once"
    yield (
        f"Training: {training.optimizer}, learning rate {training.learning_rate:g}, batch "
        f"{training.batch_size}, at most {training.epochs} epochs of {steps}; it stops where the "
        f"validation loss has not fallen for {training.patience} epochs, and the epoch of the "
        "lowest validation loss is kept."
    )
    yield (
        "Judgement. Clean protocol: temperature, prediction sets and novelty are fitted on the "
        "validation part, and the test part is scored once. Published protocol: the part the "
        "paper scores, nothing fitted."
    )


def _link(name: str) -> str:
    return f"[{name}](../transforms.md#{anchor(name)})"


def _with(entry: Mapping[str, Any], name: str) -> str:
    rest = {key: item for key, item in entry.items() if key != name}
    return f" ({value(rest)})" if rest else ""


def _settings(
    plan: schema.Recipe, tables: Mapping[str, Any], notes: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    about = {"name", "title", "summary", "paper", "dataset", "traps", "published", "arm"}
    stated = dict(flat(tables))
    for path, item in flat(plan.model_dump(exclude=about)):
        said = [escaped(note) for place, note in notes.items() if _belongs(place, path)]
        if path not in stated:
            said.append("default; not in the file")
        yield f"`{path}`", value(item), " ".join(said)


def _belongs(place: str, path: str) -> bool:
    """Whether the comment at `place` is about the setting `path`, an entry of a list included."""
    return place == path or place.startswith(f"{path}.")


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of all settings; an entry of a list of tables is `name[place]`, from 1."""
    for key, item in tables.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from flat(item, f"{path}.")
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            yield from ((f"{path}[{n}]", entry) for n, entry in enumerate(item, start=1))
        else:
            yield path, list(item) if isinstance(item, tuple) else item


def _arms(tables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for arm in schema.arms(tables):
        differs = [f"`{p}` = {value(v)}" for p, v in flat(tables.get("arms", {}).get(arm, {}))]
        yield f"`{arm}`", "; ".join(differs) or "nothing"


def _published(tables: Mapping[str, Any]) -> str:
    claimed = {arm: dict(flat(found)) for arm, found in tables.get("published", {}).items()}
    if not claimed:
        return "The paper states none."
    names = list(dict.fromkeys(path for found in claimed.values() for path in found))
    rows = [(name, *(f"{found.get(name, 'not stated')}" for found in claimed.values()))
            for name in names]  # fmt: skip
    silent = [arm for arm in schema.arms(tables) if arm not in claimed]
    note = f"\n\nNo figures for {', '.join(f'`{arm}`' for arm in silent)}." if silent else ""
    return table(("metric", *claimed), rows) + note


def toml_comments(text: str) -> dict[str, str]:
    """The comments of a TOML file by the key, table or list entry they stand above or behind.

    A block with a blank line under it belongs to the file: its place is "".
    """
    found: dict[str, list[str]] = {}
    pending: list[str] = []
    counts: dict[str, int] = {}
    inside = place = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            pending.append(line.lstrip("# "))
            continue
        if not line:
            target = ""
        elif header := re.match(r"(\[{1,2})([^\[\]]+)\]", line):
            name = header[2].strip()
            if header[1] == "[[":
                counts[name] = counts.get(name, 0) + 1
                name = f"{name}[{counts[name]}]"
            inside = target = place = name
        elif key := re.match(r"([\w.-]+)\s*=", line):
            target = place = f"{inside}.{key[1]}".lstrip(".")
        else:
            target = place  # a line within a list
        code = re.sub(r'"(?:\\.|[^"\\])*"|\'[^\']*\'', lambda m: "x" * len(m[0]), line)
        if "#" in code:
            pending.append(line[code.index("#") :].lstrip("# "))
        if pending:
            found.setdefault(target, []).extend(pending)
        pending = []
    return {where: " ".join(lines) for where, lines in found.items()}
