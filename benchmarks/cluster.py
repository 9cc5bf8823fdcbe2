"""Beyond one machine: what one and two workers take, and how cost grows with the images.

    python benchmarks/cluster.py [DATA] [--bundle BUNDLE] [--sizes 300 1200 4800] [-o F]

DATA is a folder of classes with images (default: ../shared/data/pbc-mini); sets of `--sizes`
images are made from it as benchmarks/indexing.py makes them. Each stage runs in a process of its
own. Processor seconds are what a cluster shares out, and are told beside wall time, since a busy
machine stretches only the latter. What is said of more images than were measured is a model: cost
grows on as it did between the two largest sets, and never by less than in proportion.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import machine, markdown
from indexing import replicate

STAGES = ("index", "load", "audit", "features", "predict")
MANY = 100_000_000
TIMES = 50  # rows of an index to each image, where only the table is measured
CORES = 1000  # of the cluster in the model


def index_(folder: Path, work: Path, _: Path) -> tuple[int, int]:
    from leukoscope.data.index import index

    made = index(folder, work / "cells.parquet")
    return len(made.frame), (work / "cells.parquet").stat().st_size


def multiply_(_: Path, work: Path, __: Path) -> tuple[int, int]:
    """An index of TIMES as many rows, whose facts are those of the images that there are."""
    from dataclasses import replace

    import pandas as pd

    from leukoscope.data.index import load, save

    cells = load(work / "cells.parquet")
    frames = [cells.frame.assign(image=f"{k}/" + cells.frame["image"]) for k in range(TIMES)]
    save(replace(cells, frame=pd.concat(frames, ignore_index=True)), work / "many.parquet")
    return 0, 0


def load_(_: Path, work: Path, __: Path) -> tuple[int, int]:
    """What every later command does first, with TIMES the rows."""
    from leukoscope.data.index import load

    return len(load(work / "many.parquet").frame), 0


def audit_(_: Path, work: Path, __: Path) -> tuple[int, int]:
    from leukoscope import api
    from leukoscope.data.index import load

    api.audit(work / "cells.parquet", out=work / "audit.json")
    return len(load(work / "cells.parquet").frame), (work / "audit.json").stat().st_size


def features_(_: Path, work: Path, __: Path) -> tuple[int, int]:
    """Two views an image through MobileNetV2 of 224 px, as `train` keeps them."""
    import pandas as pd

    from leukoscope.data.index import load
    from leukoscope.models.classifier import Pooled, build
    from leukoscope.models.weights import resolve
    from leukoscope.recipes.schema import resolve as recipe
    from leukoscope.train.samples import feature_samples
    from leukoscope.train.views import ImageFile, ViewSettings

    os.environ["LEUKOSCOPE_CACHE"] = str(work / "cache")
    cells, plan = load(work / "cells.parquet"), recipe("lightweight-cnn")
    none = resolve("none", "mobilenetv2_100")
    names = list(cells.frame["image"])
    hashes = cells.frame["sha256"]
    files = {i: ImageFile(cells.path(i), h) for i, h in zip(names, hashes, strict=True)}
    table = pd.DataFrame({"image": names * 2, "view": [0] * len(names) + [1] * len(names)})
    settings = ViewSettings([{"step": "resize", "size": 224}], plan.augmentation, 2, 0)
    network = Pooled(build("mobilenetv2_100", [], 2, none, seed=0))
    feature_samples(table, files, settings, network, none.input, {}, "cpu")
    kept = sum(p.stat().st_size for p in (work / "cache").rglob("*.npy"))
    return len(names), kept


def predict_(folder: Path, work: Path, bundle: Path) -> tuple[int, int]:
    from leukoscope.bundle.prediction import predict

    # The engine that a cluster's workers would take, whatever the number.
    found = predict(bundle, [folder], work / "out.parquet", engine="onnxruntime")
    return found["images"], (work / "out.parquet").stat().st_size


def measured(stage: str, folder: Path, work: Path, bundle: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), "--bundle", str(bundle)]
    done = subprocess.run(
        [*command, "--stage", stage, "--work", str(work)], check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def once(stage: str, given: argparse.Namespace) -> None:
    began = time.perf_counter()
    n, size = globals()[f"{stage}_"](given.data, given.work, given.bundle)
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = {"wall": time.perf_counter() - began, "processor": used.ru_utime + used.ru_stime}
    print(json.dumps({"n": n, "bytes": size, "peak": used.ru_maxrss * 1024, **took}))


def power(small: dict[str, Any], large: dict[str, Any], what: str) -> float:
    """By which power of the number of images a cost grew."""
    return math.log(large[what] / small[what]) / math.log(large["n"] / small["n"])


def model(small: dict[str, Any], large: dict[str, Any], what: str) -> float:
    """The cost of MANY images by the increase between two sizes, in proportion at least."""
    each = max(large[what] - small[what], 0) / (large["n"] - small["n"])
    return each * MANY * (MANY / large["n"]) ** max(power(small, large, what) - 1, 0)


def growth(found: dict[str, list[dict[str, Any]]]) -> str:
    head = ["stage", "images", "wall, s", "processor, s", "peak, MiB", "written, bytes an image"]
    rows = [
        [stage, f"{r['n']:,}", f"{r['wall']:.1f}", f"{r['processor']:.1f}",
         f"{r['peak'] / 2**20:.0f}", f"{r['bytes'] / r['n']:.0f}"]
        for stage, results in found.items() for r in results
    ]  # fmt: skip
    return markdown(head, rows)


def modelled(found: dict[str, list[dict[str, Any]]]) -> str:
    spread = ("index", "features", "predict")
    head = ["stage", "processor time grows as", "ms an image more", "processor, core-days",
            f"days on {CORES:,} cores", "memory here, GiB", "written, GiB"]  # fmt: skip
    rows = []
    for stage, results in found.items():
        small, large = results[-2:]
        cores = CORES if stage in spread else 1
        days = model(small, large, "processor") / 86400
        more = (large["processor"] - small["processor"]) / (large["n"] - small["n"])
        rows.append(
            [stage, f"n^{power(small, large, 'processor'):.2f}", f"{1000 * more:.2f}",
             f"{days:,.1f}", f"{days / cores:,.2f}" + ("" if cores > 1 else " (one core)"),
             f"{model(small, large, 'peak') / 2**30:,.0f}",
             f"{large['bytes'] / large['n'] * MANY / 2**30:,.0f}"]
        )  # fmt: skip
    return markdown(head, rows)


@contextmanager
def ray_of(cpus: int) -> Iterator[str]:
    import ray

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=2**27)  # fmt: skip
    try:
        yield "ray"
    finally:
        ray.shutdown()


def workers(folder: Path, work: Path, bundle: Path, rounds: int) -> str:
    """Wall time of index and predict on this machine, and on Ray with one worker and with two;
    of training by one process and by two."""
    from leukoscope.bundle.prediction import predict
    from leukoscope.data.index import index

    # Once: Ray reads it at its first start in a process.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    found: dict[str, list[float]] = {}

    def timed(name: str, job: Any) -> Any:
        began = time.perf_counter()
        done = job()
        found.setdefault(name, []).append(time.perf_counter() - began)
        return done

    def pair(engine: str, said: str) -> None:
        (work / "w.parquet").unlink(missing_ok=True)
        timed(f"index, {said}", lambda: index(folder, work / "w.parquet", engine=engine))
        own = "onnxruntime" if engine == "local" else engine
        timed(f"predict, {said}", lambda: predict(bundle, [folder], work / "w.csv", engine=own))

    for _ in range(rounds):
        pair("local", "threads of one process")
        for cpus in (1, 2):
            with ray_of(cpus) as engine:
                pair(engine, f"Ray, {cpus} worker{'s' * (cpus > 1)}")
        for number in (1, 2):
            said = f"{number} process{'es' * (number > 1)}"
            alone = timed(f"train, {said}", lambda n=number: train(work, n))
            found.setdefault(f"train, {said}, epochs alone", []).append(alone)
    rows = [[name, f"{min(s):.1f}", f"{max(s):.1f}"] for name, s in sorted(found.items())]
    return markdown(["what", "fastest, s", "slowest, s"], rows)


def train(work: Path, processes: int) -> float:
    """The CNN from scratch, 224 px, 3 epochs of 20 batches of 32; what the epochs alone took, s."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [sys.executable, *(launch if processes > 1 else []), "-m", "leukoscope", "train",
             "lightweight-cnn", str(work / "cells.parquet"), "-o", f"{out}/run", "--arm", "cnn",
             "--set", "training.epochs=3", "--set", "training.batch_size=32", "--set",
             "training.steps_per_epoch=20", "--set", "views.count=2"],
            check=True, capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "LEUKOSCOPE_CACHE": str(work / "cache")},
        )  # fmt: skip
        spent = json.loads(Path(out, "run", "environment.json").read_text(encoding="utf-8"))
        return float(spent["training_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "pbc-mini"
    parser.add_argument("data", type=Path, nargs="?", default=shared)
    parser.add_argument("--bundle", type=Path, required=True, help="what `predict` reads with")
    parser.add_argument("--sizes", type=int, nargs="*", default=[300, 1200, 4800])
    parser.add_argument("--rounds", type=int, default=2, help="of one worker against two; 0: none")
    parser.add_argument("-o", "--output", type=Path, help="also write the page here")
    parser.add_argument("--stage", choices=(*STAGES, "multiply"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        once(given.stage, given)
        return
    found: dict[str, list[dict[str, Any]]] = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory() as temporary:
        for size in given.sizes:
            folder, work = Path(temporary) / f"{size}", Path(temporary) / f"{size}-work"
            work.mkdir()
            replicate(given.data, folder, size)
            for stage in STAGES:
                if stage == "load":
                    measured("multiply", folder, work, given.bundle)
                found[stage].append(measured(stage, folder, work, given.bundle))
                print(size, stage, found[stage][-1], file=sys.stderr, flush=True)
        middle = given.sizes[len(given.sizes) // 2]
        places = [Path(temporary) / name for name in (f"{middle}", f"{middle}-work")]
        compared = workers(*places, given.bundle, given.rounds) if given.rounds else ""
    page = "\n\n".join(
        part for part in (
            "# One machine and many: measured",
            f"`python benchmarks/cluster.py --sizes {' '.join(map(str, given.sizes))} --rounds "
            f"{given.rounds}`. {machine('ray', 'torch', 'onnxruntime', 'pyarrow')}",
            compared and f"## One worker and two, {middle:,} images\n\n{compared}",
            f"## Measured\n\n{growth(found)}",
            f"## A model, not a measurement: {MANY:,} images\n\n{modelled(found)}",
        ) if part
    )  # fmt: skip
    print(page, flush=True)
    if given.output:
        given.output.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
