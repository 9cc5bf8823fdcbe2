"""One run of a recipe, in the order a method section tells it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from leukoscope import cluster
from leukoscope.cluster import Spread
from leukoscope.data import split as splits
from leukoscope.data.index import CellIndex
from leukoscope.data.index import load as load_index
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.files import held, output_folder
from leukoscope.imaging.augmentation import check as check_augmentation
from leukoscope.parallel import ahead
from leukoscope.recipes import crossvalidation, deploy, learning, records
from leukoscope.recipes.experiment import Experiment, prepare
from leukoscope.recipes.learning import Learned
from leukoscope.recipes.out_of_fold import out_of_fold
from leukoscope.recipes.schema import PROTOCOLS, Protocol, Recipe, resolve
from leukoscope.train import cache as caches
from leukoscope.train import checkpoints, ranks


def train(
    recipe: str,
    cells: Path,
    out: Path,
    *,
    protocol: Protocol = "clean",
    arm: str | None = None,
    weights: str | None = None,
    split: Path | None = None,
    fold: int | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    engine: str = "local",
) -> Path | None:
    """Train one arm of a recipe on an index and judge it; returns the run folder.

    recipe: a shipped recipe's name or a TOML file. weights: `auto`, `none`, or a path; the arm's
    own where None. fold: which fold of a K-fold split file, or of a recipe that cross-validates;
    without it such a recipe runs all its folds, each in `folds/`. settings: `key=value`. With
    `resume` a finished run is returned as it is. engine: where features of a frozen backbone are
    made, as cluster.joined takes it. Of several processes that torchrun started the first writes
    and returns the run folder, the others None. Raises InputError before any image is read where
    something can't work, LeakError where the clean protocol meets a leaking split.
    """
    with ranks.joined(device), contextlib.ExitStack() as stack:
        with ranks.together():
            spread = stack.enter_context(cluster.joined(engine if ranks.first() else "local"))
        if not ranks.first():  # it needs a folder for what the first process sends
            out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = _train(recipe, cells, out, protocol, arm, weights, split, fold, settings,
                     resume=resume, device=device, spread=spread)  # fmt: skip
        return run if ranks.first() else None


def _train(
    recipe: str,
    cells: Path,
    out: Path,
    protocol: Protocol,
    arm: str | None,
    weights: str | None,
    split: Path | None,
    fold: int | None,
    settings: Sequence[str],
    *,
    resume: bool,
    device: str,
    spread: Spread,
) -> Path:
    with ranks.together():
        plan, index, given = _read(recipe, cells, protocol, arm, split, settings)

    def one(out: Path, fold: int | None) -> Path:
        return run_one(plan, index, cells, out, protocol=protocol, weights=weights, given=given,
                       fold=fold, resume=resume, device=device, spread=spread)  # fmt: skip

    with caches.in_use(), contextlib.ExitStack() as stack:
        if plan.split.folds == 1 or given is not None or fold is not None:
            return one(out, fold)
        with ranks.together():
            stack.enter_context(_alone(out))
        return crossvalidation.run(one, plan, index, out, protocol, resume=resume)


def _read(
    recipe: str,
    cells: Path,
    protocol: Protocol,
    arm: str | None,
    split: Path | None,
    settings: Sequence[str],
) -> tuple[Recipe, CellIndex, pd.DataFrame | None]:
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    plan = resolve(recipe, arm=arm, settings=settings)
    check_augmentation(plan.augmentation)
    index = load_index(cells)
    return plan, index, splits.read(split) if split else None


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the run folder and hold it; InputError where another process does."""
    with held(output_folder(out)) as alone:
        if not alone:
            raise InputError(
                f"Another process is training in {out}",
                fix="Wait until it is done, or choose another folder with -o.",
                field="output",
            )
        yield


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say of a full disk, too, how the run goes on: nothing of it is lost."""
    try:
        yield
    except InputError as problem:
        if not isinstance(problem.__cause__, OSError) or not (out / "recipe.toml").is_file():
            raise
        fix = f"{problem.fix} Then go on with --resume."
        raise InputError(problem.message, fix=fix, field=problem.field) from problem.__cause__


def run_one(
    plan: Recipe,
    index: CellIndex,
    cells: Path,
    out: Path,
    *,
    protocol: Protocol,
    weights: str | None,
    given: pd.DataFrame | None,
    fold: int | None,
    resume: bool,
    device: str,
    spread: Spread = ahead,
) -> Path:
    """One split, one training, one judgement, which is the first process's."""
    began = time.time()

    # Data: split first, look for leaks, list every view that takes part.
    with contextlib.ExitStack() as stack:
        with ranks.together():
            job = prepare(
                plan, protocol, index, weights=weights, given=given, fold=fold, device=device,
                spread=spread,
            )  # fmt: skip
            # Before the folder is claimed, since weights that don't fit are found out here.
            networks = learning.untrained(job)
            if spread is not ahead and job.device != "cpu":
                raise InputError(
                    f"A cluster's workers make features on CPUs, and this run is on {job.device}",
                    fix="Add --device cpu, or leave --engine out.",
                    field="engine",
                )
            stack.enter_context(_alone(out))
            begun = not ranks.first() or records.claim(out, job, resume)
        if ranks.same(begun):  # otherwise finished before
            # Training on training rows, chosen on validation rows.
            learned = learning.learn(job, networks, out, resume=resume)
            if ranks.first():
                with ranks.alone():
                    _judge(job, learned, cells, began, out, resume=resume)
        checkpoints.clear(out)
    return out


def _judge(
    job: Experiment, learned: Learned, cells: Path, began: float, out: Path, *, resume: bool
) -> None:
    """Calibrated on validation, scored once."""
    phases = learning.after_each_phase(job, learned, out)
    said = {
        role: learning.said(learned, job.scored(role))
        for role in job.table["role"].unique()
        if role != "train" or job.protocol == "clean"  # novelty, fitted under clean alone, needs it
    }
    folds = out_of_fold(job, learned, out, resume=resume)
    contract = deploy.calibrate(job, learned, said, folds)
    deploy.save_model(learned, contract, out / "model")
    records.judge(job, said, folds, contract, phases, learned.notes, out)
    records.environment(job, cells, began, out)
