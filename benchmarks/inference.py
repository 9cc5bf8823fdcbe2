"""How fast `predict` is: beside the best timm loop, and beside what the machine allows.

    python benchmarks/inference.py --data ../shared/data/pbc-mini [--run RUN] [--memory]

DATA is a folder of JPEG. RUN is a trained run of a MobileNetV2 recipe, which gives the fp32 and the
int8 bundle and the figures of accuracy; without it an untrained network is measured. `--memory`
adds the peak memory over 200 and over 20,000 images. `--images` and `--rounds` shorten it all.
Prints Markdown. Candidates run in alternation with their models loaded; what is timed goes from the
names of the files to a csv.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import alternate, machine, markdown, table

from leukoscope.bundle import contract as contracts
from leukoscope.bundle.inference import Reader
from leukoscope.bundle.prediction import columns, row
from leukoscope.imaging import read
from leukoscope.parallel import WORKERS

ENGINES = {
    "fp32, ONNX Runtime": ("fp32", "onnxruntime"),
    "fp32, OpenVINO": ("fp32", "openvino"),
    "bf16, OpenVINO": ("fp32", "openvino-bf16"),
    "int8, ONNX Runtime": ("int8", "onnxruntime"),
    "int8, OpenVINO": ("int8", "openvino"),
}
GRID = tuple(itertools.product((1, 8, 32), (0, 2), (False, True)))
"""Batch size, loading processes and channels-last of timm's loop."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    paths = sorted(p for p in given.data.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    paths = list(itertools.islice(itertools.cycle(paths), given.images))
    print(machine("numpy", "torch", "timm", "onnxruntime", "openvino", "simplejpeg"), "\n")
    print(f"{len(paths)} JPEG; {given.rounds} rounds in alternation after one for warming up.\n")
    with tempfile.TemporaryDirectory() as folder:
        bundles = made_bundles(given.run, paths, Path(folder))
        speed(bundles, paths, given.rounds)
        start(bundles["fp32"], paths[0], given.rounds)
        if given.run:
            accuracy(bundles, given.run)
        if given.memory:
            memory(bundles, paths, Path(folder))


def made_bundles(run: Path | None, paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """An fp32 and, where it isn't refused, an int8 bundle."""
    from leukoscope import api
    from leukoscope.errors import InputError

    if run is None:
        return untrained_bundles(paths, folder)
    found = {"fp32": api.export(run, folder / "fp32")}
    try:
        found["int8"] = api.export(run, folder / "int8", precision="int8")
    except InputError as refused:
        print(f"{refused.message}.\n")
    return found


def untrained_bundles(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Bundles of a network with random weights: as fast as a trained one."""
    import leukoscope
    from leukoscope.bundle.quantisation import quantised
    from leukoscope.files import sha256_of, write_json
    from leukoscope.models.classifier import build
    from leukoscope.models.graph import classifier_graph
    from leukoscope.models.weights import resolve

    half, size = (0.5, 0.5, 0.5), (224, 224)
    outputs = ("logits", "features", "feature_map", "class_gradient")
    classes = [f"class {n}" for n in range(8)]
    network = build("mobilenetv2_100", [], len(classes), resolve("none", "mobilenetv2_100"), seed=0)
    graph = classifier_graph(network.eval(), size, outputs)
    model: dict[str, Any] = {
        "networks": [{"architecture": "mobilenetv2_100", "mean": half, "std": half}], "head": [],
    }  # fmt: skip
    stated: dict[str, Any] = {
        "leukoscope": leukoscope.__version__, "created": "", "name": "untrained", "version": "1",
        "input": {"size": size, "mean": half, "std": half}, "classes": classes, "temperature": 1.0,
        "preprocessing": [{"step": "resize", "size": 224}, {"step": "stretch_contrast"}],
        "prediction_sets": None, "novelty": None, "validation": {}, "model": model,
        "origin": dict.fromkeys(("recipe", "arm", "protocol", "recipe_sha256", "data",
                                 "data_licence", "data_citation", "data_sha256"), "")
        | {"seed": 0, "images": 0, "patients": None, "synthetic": False, "weights": []},
    }  # fmt: skip
    reader = Reader(contracts.Contract.model_validate(stated), graph)
    images = np.stack([reader.image(path) for path in paths[:32]])
    for name, own in (("fp32", graph), ("int8", quantised(graph, images))):
        (folder / name).mkdir()
        (folder / name / contracts.GRAPH).write_bytes(own)
        model |= {"precision": name, "sha256": sha256_of(folder / name / contracts.GRAPH)}
        write_json(folder / name / contracts.CONTRACT, contracts.seal(stated))
    return {name: folder / name for name in ("fp32", "int8")}


def speed(bundles: dict[str, Path], paths: Sequence[Path], rounds: int) -> None:
    """End to end, alone and beside timm's loop, all in one alternation."""
    readers = {}
    for name, (precision, engine) in ENGINES.items():
        if precision in bundles:
            readers[name] = Reader.load(bundles[precision], engine=engine)
    first = next(iter(readers.values()))
    batch, workers, last = best_grid(paths[:200])
    timm = f"timm, batch {batch}, {workers} workers{', channels last' if last else ''}"
    blobs = [path.read_bytes() for path in paths]
    image = first.image(paths[0])[None]

    def decode(data: bytes) -> None:
        read.read_bytes_image(data)

    def modelled(reader: Reader) -> Callable[[bytes], None]:
        return lambda _: void(reader.run(image, ("logits", "features")))

    candidates: dict[str, Callable[[], float | None]] = {
        timm: lambda: timm_loop(paths, batch, workers, last)
    }
    for name, reader in readers.items():
        candidates[name] = lambda reader=reader: ours(reader, paths)  # type: ignore[misc]
    candidates["decode alone"] = lambda: everywhere(decode, blobs)
    candidates["file to tensor alone"] = lambda: everywhere(lambda p: void(first.image(p)), paths)
    for name, reader in readers.items():
        run = modelled(reader)
        candidates[f"model alone: {name}"] = lambda run=run: everywhere(run, blobs)  # type: ignore[misc]
    seconds = alternate(candidates, rounds)
    print("### Images a second\n")
    print(table(seconds, against=timm, items=len(paths)), "\n")
    half = {name: statistics.median(each) for name, each in seconds.items()}
    rows = []
    for name in readers:
        allowed = half["decode alone"] + half[f"model alone: {name}"]
        rows.append([name, f"{half[name]:.2f}", f"{allowed:.2f}", f"{half[name] / allowed:.2f}"])
    print("### Beside decode alone and model alone sharing the cores\n")
    print(markdown(("what", "end to end, s", "decode + model, s", "ratio"), rows), "\n")
    print(f"Matrix product, float32, {WORKERS} cores: {matrix_product():.0f} GFLOP/s.\n")


def void(_: object) -> None:
    """Throws a result away."""


def everywhere(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """A function over all items, on all cores."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(function, items):
            pass


def ours(reader: Reader, paths: Sequence[Path]) -> None:
    """What `predict` does between loading the bundle and moving the csv to its place."""
    from leukoscope.bundle.prediction import _csv

    with tempfile.NamedTemporaryFile(suffix=".csv") as out:
        rows = (row(path, answer, reader.contract) for path, answer in reader.read(paths))
        _csv(Path(out.name), rows, columns(reader.contract.classes))


_loops: dict[bool, Any] = {}


def timm_loop(paths: Sequence[Path], batch: int, workers: int, last: bool) -> None:
    """A timm model behind torchvision's transforms and a DataLoader, on all cores."""
    import torch
    from PIL import Image

    from leukoscope.compat import import_timm

    timm = import_timm()
    from torchvision import transforms

    torch.set_num_threads(WORKERS)
    form = torch.channels_last if last else torch.contiguous_format
    if last not in _loops:
        made = timm.create_model("mobilenetv2_100", num_classes=8).eval()
        _loops[last] = made.to(memory_format=form)
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> Any:
            return prepare(Image.open(paths[place]).convert("RGB"))

    loader = torch.utils.data.DataLoader(Files(), batch_size=batch, num_workers=workers)
    with torch.inference_mode():
        for images in loader:
            _loops[last](images.to(memory_format=form)).softmax(dim=1).numpy()


def best_grid(paths: Sequence[Path]) -> tuple[int, int, bool]:
    """The fastest of GRID for timm's loop."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for setting in GRID:
            timm_loop(paths[:8], *setting)
            began = time.perf_counter()
            timm_loop(paths, *setting)
            found[setting] = time.perf_counter() - began
    return min(found, key=lambda setting: found[setting])


def matrix_product(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product on all cores, the best of five."""
    import torch

    torch.set_num_threads(WORKERS)
    a, b = torch.rand(size, size), torch.rand(size, size)
    best = min(timed(lambda: a @ b) for _ in range(5))
    return 2 * size**3 / best / 1e9


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def start(bundle: Path, path: Path, rounds: int) -> None:
    """Seconds of the whole process from command to answer for one image."""
    with tempfile.TemporaryDirectory() as folder:
        script = "from leukoscope.cli.main import run; run()"
        command = [sys.executable, "-c", script, "predict", str(bundle), str(path), "-o",
                   f"{folder}/said.csv"]  # fmt: skip

        def once() -> None:
            subprocess.run(command, check=True, capture_output=True)

        print("### From command to first answer\n")
        print(table(alternate({"predict, one image": once}, rounds)), "\n")


def accuracy(bundles: dict[str, Path], run: Path) -> None:
    """Macro F1 of every engine on the run's validation and test part."""
    import pandas as pd

    from leukoscope.recipes import origins
    from leukoscope.recipes.quantised import macro_f1

    origin = origins.of_run(run)
    assert origin is not None, "the run's images are needed"
    split = pd.read_parquet(run / "split.parquet")
    label = origin.index.frame.set_index("image")["label"]
    rows = []
    for part in ("validation", "test"):
        images = sorted(set(split.loc[split["role"] == part, "image"]))
        reference: np.ndarray | None = None
        for name, (precision, engine) in ENGINES.items():
            if precision not in bundles:
                continue
            reader = Reader.load(bundles[precision], engine=engine)
            labels = np.array([reader.contract.classes.index(label[i]) for i in images])
            said = reader.read(origin.paths(images))
            probs = np.concatenate([answer.probs for _, answer in said])
            reference = probs if reference is None else reference
            changed = (probs.argmax(1) != reference.argmax(1)).mean()
            rows.append([name, part, len(images), f"{macro_f1(probs, labels):.4f}",
                         f"{100 * changed:.1f} %"])  # fmt: skip
    print("### Accuracy\n")
    head = ("what", "part", "n", "macro F1", "other class than ONNX Runtime fp32")
    print(markdown(head, rows), "\n")


def memory(bundles: dict[str, Path], paths: Sequence[Path], folder: Path) -> None:
    """Peak memory of `predict` over few and over many images, each in a process of its own."""
    many = folder / "many"
    many.mkdir()
    for number, path in enumerate(itertools.islice(itertools.cycle(paths), 20_000)):
        (many / f"{number:05}.jpg").symlink_to(path.resolve())
    few = folder / "few"
    few.mkdir()
    for path in sorted(many.iterdir())[:200]:
        (few / path.name).symlink_to(path.resolve())
    script = (
        "import resource, sys; from leukoscope import api;"
        "n = api.predict(sys.argv[1], [sys.argv[2]], sys.argv[3])['images'];"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    rows = []
    for name, bundle in bundles.items():
        peaks = []
        for images in (few, many):
            out = folder / "memory.csv"
            said = subprocess.run(
                [sys.executable, "-c", script, str(bundle), str(images), str(out)],
                check=True, capture_output=True, text=True,
            ).stdout.split()  # fmt: skip
            peaks.append(float(said[1]))
        rows.append([name, *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] - peaks[0]:.0f}"])
    print("### Peak memory of predict, MB\n")
    print(markdown(("bundle", "200 images", "20,000 images", "difference"), rows), "\n")


if __name__ == "__main__":
    main()
