"""Imports go only downwards, and what serves a laboratory never loads torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "leukoscope"
# From the top down; a module may import from its own row and the rows below.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"doctor"},
    {"review"},
    {"report"},
    {"recipes"},
    {"bundle"},
    {"train", "explain"},
    {"models"},
    {"data"},
    {"imaging"},
    {"evaluate"},
    {"cluster"},
    {"errors", "registry", "compat", "files", "parallel", "progress", "tables"},
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
MODULES = sorted(SOURCE.rglob("*.py"))
TORCH_STACK = {"torch", "torchvision", "timm", "kornia", "captum", "safetensors"}
WITHOUT_TORCH = {"evaluate", "data", "bundle", "review", "report"}


def imported(module: Path) -> set[str]:
    """Every dotted name a module imports, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(module: Path) -> str:
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_imports_go_downwards(module: Path) -> None:
    own = layer(module)
    if own == "__init__":
        return
    assert own in RANK, f"{own} stands in no layer of DESIGN.md"
    for name in imported(module):
        parts = name.split(".")
        if parts[0] == "leukoscope" and len(parts) > 1 and parts[1] in RANK:
            assert RANK[parts[1]] >= RANK[own], f"{own} imports upwards: {name}"
            same_row = RANK[parts[1]] == RANK[own] and own in {"train", "explain"}
            assert not same_row or parts[1] == own, f"{own} imports its neighbour: {name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_torch_stays_out_of_what_serves(module: Path) -> None:
    if layer(module) in WITHOUT_TORCH:
        assert not {name.split(".")[0] for name in imported(module)} & TORCH_STACK
