"""Markdown from Python: tables, docstrings, settings, anchors."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def prose(text: str) -> str:
    """A docstring as Markdown: paragraphs rewrapped, `<` escaped outside of code."""
    return "\n\n".join(
        escaped(" ".join(part.split())) for part in re.split(r"\n\s*\n", inspect.cleandoc(text))
    )


def escaped(text: str) -> str:
    """`<` outside of code, which Markdown would take for HTML, as an entity."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)


def documentation(function: Callable[..., Any], name: str) -> str:
    """A registered function's docstring; ValueError where it has none."""
    found = inspect.getdoc(function)
    if not found:
        raise ValueError(f"{name} has no docstring to document it with")
    return found


def summary(function: Callable[..., Any], name: str) -> str:
    """The first paragraph of a docstring, without its full stop."""
    return prose(documentation(function, name)).split("\n\n")[0].rstrip(".")


def value(given: Any) -> str:
    """A setting as TOML would write it, in code."""
    if isinstance(given, Mapping):
        return ", ".join(f"`{key}` {value(item)}" for key, item in given.items())
    return "none" if given is None else f"`{json.dumps(given, ensure_ascii=False)}`"


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
