"""Who is trained on and who is tested on: stratified, and never one patient on both sides.

A group is what must stay together: all images of one patient, all copies of one picture, and
whatever these two relations connect. Splits are files, written once and checked on every load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from leukoscope import files
from leukoscope.data import duplicates
from leukoscope.data.duplicates import Duplicates
from leukoscope.data.table import as_lists, read_parquet, write_parquet
from leukoscope.errors import InputError, LeakError, UnknownNameError, some

if TYPE_CHECKING:
    from leukoscope.data.index import CellIndex

ROLES = ("train", "validation", "test")
COLUMNS = ("image", "fold", "role")
RATIOS = (0.7, 0.15, 0.15)
_METADATA = b"leukoscope"
_PASSES = 20  # of the exchange that improves the greedy allocation; it mostly ends after two


def ratios(text: str) -> tuple[float, float, float]:
    """Parse `70/15/15` or `0.7/0.15/0.15`: the shares of train, validation and test.

    Two numbers are train and test. InputError where they are no shares of a whole.
    """
    parts = text.replace(",", "/").replace(":", "/").split("/")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise _bad_ratios(text) from None
    if len(numbers) == 2:
        numbers.insert(1, 0.0)
    return _checked_ratios(numbers, text)


def _bad_ratios(got: object) -> InputError:
    return InputError(
        f"The ratios {got} are not three shares of train, validation and test, "
        "none negative, train and one other above 0, that sum to 1 or 100",
        fix="Give for example 70/15/15, or 80/20/0 for two roles.",
        field="ratios",
    )


def _checked_ratios(numbers: Sequence[float], got: object) -> tuple[float, float, float]:
    total = sum(numbers)
    whole = next((w for w in (1, 100) if abs(total - w) <= 1e-6 * w), None)
    if len(numbers) != 3 or whole is None or min(numbers) < 0:
        raise _bad_ratios(got)
    if numbers[0] == 0 or max(numbers[1:]) == 0:
        raise _bad_ratios(got)
    train, validation, test = (number / whole for number in numbers)
    return train, validation, test


def split(
    cells: CellIndex,
    *,
    ratios: Sequence[float] = RATIOS,
    folds: int | None = None,
    seed: int = 0,
    found: Duplicates | None = None,
) -> pd.DataFrame:
    """A split stratified by label and grouped by patient and duplicate cluster.

    Columns image, fold, role; sorted. Without `folds` there is one fold, 0, with the shares
    `ratios`; every class is rounded by largest remainder where no groups bind. With `folds` = K,
    part k is the test of fold k, about 1/K of the rest its validation (`ratios` is not used), and
    every image is tested once. The same seed gives the same split, whatever the order of the rows.
    `found` saves looking for duplicates again. The frame's `attrs` hold seed, ratios, folds and
    the index's hash.

    Raises InputError where the request can't be met, with what could.
    """
    shares = _checked_ratios(list(ratios), tuple(ratios))
    if folds is not None and folds < 2:
        raise InputError(
            f"folds is {folds}; cross-validation needs at least 2",
            fix="Give --folds 5, or leave it out for a single split.",
            field="folds",
        )
    units = _units(cells, found or duplicates.find(cells))
    rng = np.random.default_rng(seed)
    if folds is None:
        used = [role for role, share in zip(ROLES, shares, strict=True) if share > 0]
        _refuse_small_classes(units, len(used), "roles")
        placed = _allocate(units, [share for share in shares if share > 0], rng)
        parts = [_frame(units, np.array(used, dtype=object)[placed], 0)]
    else:
        _refuse_small_classes(units, max(folds, len(ROLES)), "folds")
        parts = _cross(units, folds, rng)
    frame = pd.concat(parts, ignore_index=True)
    _refuse_empty_roles(frame, len(used) if folds is None else len(ROLES))
    frame.attrs = {
        "seed": seed,
        "ratios": None if folds else list(shares),
        "folds": folds,
        "index": index_hash(cells),
    }
    return frame


@dataclass(frozen=True)
class _Units:
    """Images in name order, the group of each, and how many of each class a group holds."""

    images: np.ndarray  # (n,) names, sorted
    group: np.ndarray  # (n,) int, numbered by first appearance
    counts: np.ndarray  # (groups, classes) int
    classes: list[str]
    patients_known: bool

    def subset(self, kept: np.ndarray) -> _Units:
        """Only the groups where `kept` (groups,) is true, numbered anew."""
        inside = kept[self.group]
        group = (np.cumsum(kept) - 1)[self.group[inside]]
        counts = self.counts[kept]
        return _Units(self.images[inside], group, counts, self.classes, self.patients_known)


def _units(cells: CellIndex, found: Duplicates) -> _Units:
    frame = cells.frame.reset_index(drop=True)
    _refuse_bad_labels(frame)
    order = np.argsort(frame["image"].to_numpy(dtype=str), kind="stable")
    labels, classes = pd.factorize(frame["label"].iloc[order], sort=True)
    component = groups(cells, found)[order]
    group = pd.factorize(component)[0]
    counts = np.zeros((group.max() + 1, len(classes)), int)
    np.add.at(counts, (group, labels), 1)
    images = frame["image"].to_numpy(dtype=object)[order]
    return _Units(images, group, counts, list(classes), bool(frame["patient"].notna().any()))


def _refuse_bad_labels(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise InputError(
            "The index holds no image", fix="Index a folder with images.", field="cells"
        )
    without = frame.loc[frame["label"].isna(), "image"].tolist()
    if without:
        raise InputError(
            f"{len(without)} images have no label: {some(without)}",
            fix="Give them a label or leave them out of the index.",
            field="label",
        )
    if frame["label"].nunique() < 2:
        raise InputError(
            f"All {len(frame)} images have one class, {frame['label'].iloc[0]!r}; "
            "a classifier needs at least two",
            fix="Index a folder with one subfolder a class, or check --layout.",
            field="label",
        )


def groups(cells: CellIndex, found: Duplicates) -> np.ndarray:
    """What must stay together, (n,) int: components of same patient or same duplicate cluster."""
    patient = pd.factorize(cells.frame["patient"])[0]
    known = np.flatnonzero(patient >= 0)
    clusters = np.asarray(found.clusters)
    n, patients = len(cells.frame), int(patient.max(initial=-1)) + 1
    # Images are joined to nodes of their own that stand for their patient and their cluster.
    one = np.concatenate([known, np.arange(n)])
    other = np.concatenate([n + patient[known], n + patients + clusters])
    size = n + patients + int(clusters.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:n]


def _refuse_small_classes(units: _Units, least: int, of_what: str) -> None:
    available = (units.counts > 0).sum(axis=0)
    small = {name: int(k) for name, k in zip(units.classes, available, strict=True) if k < least}
    if not small:
        return
    kind = "patients or groups of duplicates" if units.patients_known else "different images"
    listed = some([f"{name!r} has {count}" for name, count in small.items()])
    fewest = min(small.values())
    if of_what == "folds" and fewest >= len(ROLES):
        fix = f"Use --folds {fewest} or fewer, or leave these classes out."
    elif fewest >= 2:
        fix = "Use two roles (--ratios 80/20/0), add images, or leave these classes out."
    else:
        fix = f"Add {kind} to these classes or leave them out of the index."
    raise InputError(
        f"Every class needs at least {least} {kind} for this many {of_what}; {listed}",
        fix=fix,
        field=of_what,
    )


def _refuse_empty_roles(frame: pd.DataFrame, roles: int) -> None:
    for fold, part in frame.groupby("fold"):
        present = set(part["role"])
        if len(present) < roles:
            raise InputError(
                f"A role of fold {fold} would be empty: only {', '.join(sorted(present))} "
                f"got any of the {len(part)} images",
                fix="Give the small role a larger share, or index more patients or images.",
                field="ratios",
            )


def _cross(units: _Units, folds: int, rng: np.random.Generator) -> list[pd.DataFrame]:
    part = _allocate(units, [1 / folds] * folds, rng)
    parts = []
    for fold in range(folds):
        rest = part != fold
        role = np.full(len(part), "test", dtype=object)
        inner = _allocate(units.subset(rest), [1 - 1 / folds, 1 / folds], rng)
        role[rest] = np.array(ROLES[:2], dtype=object)[inner]
        parts.append(_frame(units, role, fold))
    return parts


def _frame(units: _Units, role: np.ndarray, fold: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"image": units.images.astype(str), "fold": fold, "role": role[units.group].astype(str)}
    )


def _targets(sizes: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Whole images (parts, classes) that come nearest to the shares: largest remainder."""
    exact = [[Fraction(s).limit_denominator(10**6) * int(n) for n in sizes] for s in shares]
    floors = np.array([[int(value) for value in row] for row in exact])
    remainders = np.array([[float(value - int(value)) for value in row] for row in exact])
    for column, missing in enumerate(sizes - floors.sum(axis=0)):
        largest = np.argsort(-remainders[:, column], kind="stable")[:missing]
        floors[largest, column] += 1
    return floors


def _allocate(units: _Units, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The part (groups,) of every group, so that each class's counts come near their targets.

    Large groups first, each to where it costs least; then exchanges; single images fill the gaps.
    The cost is the sum over parts and classes of (count - target)^2 / class size.
    """
    counts = units.counts
    targets = _targets(counts.sum(axis=0), shares)
    weights = 1 / np.maximum(counts.sum(axis=0), 1)
    gap = targets.astype(float)
    part = np.full(len(counts), -1)
    shuffled = rng.permutation(len(counts))
    sizes = counts.sum(axis=1)
    large = shuffled[sizes[shuffled] > 1]
    large = large[np.argsort(-sizes[large], kind="stable")]
    for group in large:
        part[group] = _cheapest(gap, counts[group], weights)
        gap[part[group]] -= counts[group]
    _exchange(part, gap, counts, weights, large)
    for group in shuffled[sizes[shuffled] == 1]:
        label = counts[group].argmax()
        part[group] = gap[:, label].argmax()
        gap[part[group], label] -= 1
    _complete(part, counts, len(shares))
    return part


def _complete(part: np.ndarray, counts: np.ndarray, parts: int) -> None:
    """Give every part a group of each class that has as many groups as there are parts, the
    smallest that can be spared: few and large patients would else leave a class out of a part.
    Changes `part` in place."""
    has = counts > 0
    enough = has.sum(axis=0) >= parts
    present = np.stack([has[part == k].sum(axis=0) for k in range(parts)])
    for label in np.flatnonzero(enough):
        for empty in np.flatnonzero(present[:, label] == 0):
            spare = [
                group
                for group in np.flatnonzero(has[:, label])
                if (present[part[group]][has[group] & enough] > 1).all()
            ]
            if spare:
                group = min(spare, key=lambda g: counts[g].sum())
                present[part[group]] -= has[group]
                present[empty] += has[group]
                part[group] = empty


def _cheapest(gap: np.ndarray, added: np.ndarray, weights: np.ndarray) -> int:
    """The part whose cost grows least: sum of w ((gap - added)^2 - gap^2)."""
    return int((weights * added * (added - 2 * gap)).sum(axis=1).argmin())


def _exchange(
    part: np.ndarray, gap: np.ndarray, counts: np.ndarray, weights: np.ndarray, large: np.ndarray
) -> None:
    """Move single groups while that lowers the cost; changes `part` and `gap` in place."""
    for _ in range(_PASSES):
        moved = False
        for group in large:
            old = part[group]
            gap[old] += counts[group]
            best = _cheapest(gap, counts[group], weights)
            costs = (weights * counts[group] * (counts[group] - 2 * gap)).sum(axis=1)
            # Only a real gain moves a group, or two equal places would swap it for ever.
            new = best if costs[best] < costs[old] - 1e-9 else old
            gap[new] -= counts[group]
            part[group], moved = new, moved or new != old
        if not moved:
            return


def index_hash(cells: CellIndex) -> str:
    """SHA-256 over image, label, patient and content of every row, whatever their order."""
    columns = ["image", "label", "patient", "sha256"]
    rows = cells.frame[columns].astype(object).where(cells.frame[columns].notna(), None)
    lines = sorted(json.dumps(row) for row in rows.to_numpy().tolist())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write(split_frame: pd.DataFrame, path: Path) -> None:
    """Write a split as parquet, whole or not at all; its `attrs` go into the metadata."""
    table = pa.Table.from_pandas(
        pd.DataFrame({c: split_frame[c].to_numpy() for c in COLUMNS}), preserve_index=False
    )
    metadata = {_METADATA: json.dumps(files.plain(split_frame.attrs)).encode()}
    write_parquet(table.replace_schema_metadata(metadata), Path(path))


def read(path: Path) -> pd.DataFrame:
    """Read a split; InputError where it is none, UnknownNameError at a role that is none."""
    fix = "Write one with: leukoscope split cells.parquet -o split.parquet"
    table = read_parquet(Path(path), "a split", fix=fix, field="split")
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)}; a split has {', '.join(COLUMNS)}",
            fix=fix,
            field="split",
        )
    columns = as_lists(table, COLUMNS, Path(path))
    for name in ("image", "role"):
        odd = next((value for value in columns[name] if not isinstance(value, str)), None)
        if odd is not None or None in columns[name]:
            raise InputError(
                f"{path} has {odd!r} in the column {name!r}; allowed: text", fix=fix, field=name
            )
    frame = pd.DataFrame(columns)
    _check_values(frame, path)
    frame.attrs = _attributes(table.schema)
    return frame.astype({"image": str, "fold": int, "role": str})


def _attributes(schema: pa.Schema) -> dict[Any, Any]:
    """Seed, ratios, folds and the index's hash, where the file holds them."""
    try:
        found = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_values(frame: pd.DataFrame, path: Path | str) -> None:
    if not len(frame):
        raise InputError(f"{path} holds no image", fix="Write the split anew.", field="split")
    for role in frame["role"].drop_duplicates():
        if role not in ROLES:
            raise UnknownNameError("role", str(role), ROLES)
    if frame["image"].isna().any() or not pd.api.types.is_integer_dtype(frame["fold"]):
        raise InputError(
            f"{path} has rows without an image or with a fold that is no whole number",
            fix="Number the folds 0, 1, … (a single split has fold 0 only).",
            field="fold",
        )
    twice = frame.loc[frame.duplicated(["image", "fold"]), "image"].tolist()
    if twice:
        raise InputError(
            f"{path} names {len(twice)} images twice in one fold: {some(twice)}",
            fix="Keep one row an image and fold.",
            field="image",
        )


@dataclass(frozen=True)
class Crossing:
    """What stands in more than one role of a fold: patient ids, and groups of duplicate images."""

    patients: list[str]
    groups: list[list[str]]


def crossing(cells: CellIndex, split_frame: pd.DataFrame, found: Duplicates) -> Crossing:
    """Patients and duplicates on both sides, each named once whatever the number of folds."""
    frame = pd.DataFrame(
        {
            "image": cells.frame["image"].to_numpy(),
            "patient": cells.frame["patient"].to_numpy(),
            "cluster": found.clusters,
        }
    )
    joined = split_frame.merge(frame, on="image", validate="many_to_one")
    patients = _in_several_roles(joined, "patient")
    clusters = _in_several_roles(joined, "cluster")
    members = frame[frame["cluster"].isin(clusters)].groupby("cluster")["image"]
    return Crossing(sorted(map(str, patients)), sorted(sorted(m) for _, m in members))


def _in_several_roles(joined: pd.DataFrame, column: str) -> list[object]:
    roles = joined.dropna(subset=column).groupby(["fold", column])["role"].nunique()
    return list(roles[roles > 1].index.get_level_values(column).unique())


def check(
    cells: CellIndex,
    split_frame: pd.DataFrame,
    *,
    excluded: Collection[str] = frozenset(),
    found: Duplicates | None = None,
) -> None:
    """Raise LeakError where a patient or a picture stands in two roles of one fold.

    InputError where index and split don't name the same images; `excluded` are images of the index
    that the split leaves out on purpose. `found` saves looking for duplicates again.
    """
    absent = [image for image in left_out(cells, split_frame) if image not in excluded]
    if absent:
        raise InputError(
            f"{len(absent)} images of the index are not in every fold of the split: {some(absent)}",
            fix="Split anew, or list them as excluded.",
            field="split",
        )
    across = crossing(cells, split_frame, found or duplicates.find(cells))
    faults = []
    if across.patients:
        named = some([_sides(cells, split_frame, patient) for patient in across.patients], 3)
        faults.append(f"{len(across.patients)} patients ({named})")
    if across.groups:
        named = some([" = ".join(group[:4]) for group in across.groups])
        faults.append(f"{len(across.groups)} groups of duplicate images ({named})")
    if faults:
        raise LeakError(
            f"The split leaks: {' and '.join(faults)} stand in more than one role",
            fix="Write a clean one with: leukoscope split cells.parquet -o split.parquet",
            field="split",
        )


def _sides(cells: CellIndex, split_frame: pd.DataFrame, patient: str) -> str:
    """`P01: a.jpg in train, b.jpg in test`: an image of the patient on each side."""
    own = cells.frame.loc[cells.frame["patient"] == patient, "image"]
    rows = split_frame[split_frame["image"].isin(own)].drop_duplicates("role")
    sides = [f"{image} in {role}" for image, role in zip(rows["image"], rows["role"], strict=True)]
    return f"{patient}: {', '.join(sides)}"


def left_out(cells: CellIndex, split_frame: pd.DataFrame) -> list[str]:
    """Images of the index that some fold of the split lacks, sorted.

    InputError where the split is malformed or names images that the index doesn't have.
    """
    _check_values(split_frame, "The split")
    indexed = set(cells.frame["image"])
    unknown = sorted(set(split_frame["image"]) - indexed)
    if unknown:
        raise InputError(
            f"{len(unknown)} images of the split are not in the index: {some(unknown)}",
            fix="Use the index that the split was made from, or split anew.",
            field="split",
        )
    times = split_frame["image"].value_counts()
    everywhere = set(times.index[times == split_frame["fold"].nunique()])
    return sorted(indexed - everywhere)
