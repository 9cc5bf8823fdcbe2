"""The page of a recipe, made from its TOML file: method, settings, arms, figures, traps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from generate_method import steps
from generate_text import anchor, escaped, prose, table, value

from leukoscope.recipes import schema

MEASURED = Path(__file__).resolve().parent / "measured"


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
    plans = {arm: schema.resolve(name, arm=arm) for arm in schema.arms(tables)}
    plan = next(iter(plans.values()))
    notes = toml_comments(text)
    data = tables["dataset"]
    doi = f" doi [{plan.paper.doi}](https://doi.org/{plan.paper.doi})." if plan.paper.doi else ""
    parts = [
        f"# {tables['title']}",
        prose(tables["summary"]),
        f"Paper: {escaped(plan.paper.citation)}{doi} Licence of the paper: {plan.paper.licence}.",
        f"Data set of the paper: [{data}](../datasets.md#{anchor(data)}). The recipe file: "
        f"[{name}.toml](../../src/leukoscope/recipes/{name}.toml).",
        f"```\nleukoscope train {name} cells.parquet -o run\n"
        f"leukoscope reproduce {name} cells.parquet -o reproduction\n```",
        "## The method, in order",
        *_methods(plans),
        "## Settings",
        f"Of the default arm, `{plan.arm}`. Change one with `--set key=value`, a list as a whole.",
        table(("setting", "value", "note"), _settings(plan, tables, notes)),
        "## Arms",
        table(("arm", "what differs from the recipe's own settings"), _arms(tables)),
        "## What the paper leaves open, and what was chosen",
        "The comments of the recipe file, each at the setting it explains.",
        "\n".join(_open_points(notes)) or "The recipe file has no comments.",
        "## Claimed figures",
        "As the paper states them; fractions, `log_loss` in nats, `environment.seconds` of "
        "training. They stand beside the measured figures in every report.",
        *_published(tables, notes),
        "## Measured figures",
        _measured(name),
        "## Traps",
        "\n".join(f"- {escaped(trap)}" for trap in tables.get("traps", [])) or "None known.",
    ]
    return "\n\n".join(parts)


def _methods(plans: Mapping[str, schema.Recipe]) -> Iterator[str]:
    """The steps of the default arm; where other arms end in another kind of model, how the first
    of them differs."""
    plan, *rest = plans.values()
    said = list(steps(plan))
    yield f"The steps of the default arm, `{plan.arm}`."
    yield _numbered(said)
    others = [other for other in rest if other.classic != plan.classic]
    if others:
        kind = "A classical model on deep features" if others[0].classic else "A network alone"
        arms = ", ".join(f"`{other.arm}`" for other in others)
        yield f"{kind} has the last word in {arms}. The steps of `{others[0].arm}` that differ:"
        yield _numbered([step for step in steps(others[0]) if step not in said])


def _numbered(lines: list[str]) -> str:
    return "\n".join(f"{n}. {line}" for n, line in enumerate(lines, start=1))


def _settings(
    plan: schema.Recipe, tables: Mapping[str, Any], notes: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    about = {"name", "title", "summary", "paper", "dataset", "traps", "published", "arm"}
    own = tables.get("arms", {}).get(plan.arm, {})
    stated = {*dict(flat(tables)), *dict(flat(own))}
    # Settings of models that no arm has, and what phases stand in place of.
    single = tuple(f"training.{key}" for key in ("trained", "layers", "epochs"))
    idle = ("classical", "features", *(single if plan.training.phases else ["training.phases"]))
    for path, item in flat(plan.model_dump(exclude=about | {"ablation"})):
        if path not in stated and path.startswith(idle):
            continue
        said = [escaped(note) for place, note in notes.items() if _belongs(place, path)]
        if path not in stated:
            said.append("default; not in the file")
        yield f"`{path}`", value(item), "; ".join(note.removesuffix(".") for note in said)


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


def _open_points(notes: Mapping[str, str]) -> Iterator[str]:
    for place, note in notes.items():
        if place and not place.startswith("published"):
            yield f"- `{place}`: {escaped(note)}"


def _published(tables: Mapping[str, Any], notes: Mapping[str, str]) -> Iterator[str]:
    claimed = tables.get("published", [])
    if not claimed:
        yield "The paper states none."
    for number, found in enumerate(claimed, start=1):
        yield f"### {found['title']}"
        said = [n for place, n in notes.items() if f"{place}.".startswith(f"published[{number}].")]
        yield from map(escaped, said)
        yield _figures(found["figures"])
        yield from (f"- {_test(test)}" for test in found.get("tests", []))
    if "ablation" in tables:
        yield from _ablation(tables["ablation"])
    silent = set(schema.arms(tables)).difference(*(found["figures"] for found in claimed))
    if silent:
        yield f"No figures for {', '.join(f'`{arm}`' for arm in sorted(silent))}."


def _figures(figures: Mapping[str, Mapping[str, float]]) -> str:
    """One published table; many arms are rows, few are columns."""
    metrics = list(dict.fromkeys(metric for found in figures.values() for metric in found))
    if len(figures) > 4:
        rows = [(arm, *(_figure(found, m) for m in metrics)) for arm, found in figures.items()]
        return table(("arm", *metrics), rows)
    rows = [(m, *(_figure(found, m) for found in figures.values())) for m in metrics]
    return table(("metric", *figures), rows)


def _figure(found: Mapping[str, float], metric: str) -> str:
    return f"{found[metric]}" if metric in found else "not stated"


def _test(test: Mapping[str, Any]) -> str:
    name, letter = {"paired_t": ("Paired t-test over classes", "t"),
                    "mcnemar": ("McNemar's test", "chi-squared")}[test["test"]]  # fmt: skip
    of = f" of {test['metric']}" if test.get("metric") else ""
    said = [f"{letter} = {test['statistic']}"] if "statistic" in test else []
    said += [f"p = {test['p']}"] if "p" in test else []
    said += [test["note"]] if test.get("note") else []
    return f"{name}{of}, `{test['a']}` against `{test['b']}`: {', '.join(said)}."


def _ablation(ablation: Mapping[str, Any]) -> Iterator[str]:
    what = {"cumulative": "each arm adds one factor to the arm above it",
            "factorial": "every combination of the factors"}[ablation["kind"]]  # fmt: skip
    yield "### Factors of the ablation"
    yield f"By {ablation['metric']}: {what}."
    yield table(
        ("arm", "factors that are on"),
        [(arm, ", ".join(factors) or "none") for arm, factors in ablation["arms"].items()],
    )


def _measured(name: str) -> str:
    """What was written up of runs of this recipe, as it stands in docs/measured/NAME.md."""
    path = MEASURED / f"{name}.md"
    if not path.is_file():
        return "No run of this recipe is written up here."
    return path.read_text("utf-8").strip()


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
