"""Inference: images in, logits, features and heat maps out. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from leukoscope.bundle import contract as contracts
from leukoscope.bundle.contract import Contract
from leukoscope.bundle.engines import choose, open_engine
from leukoscope.cluster import Spread
from leukoscope.errors import InputError, UnreadableError
from leukoscope.evaluate.calibration import prediction_sets, softmax
from leukoscope.evaluate.novelty import score
from leukoscope.imaging.colour import normalise
from leukoscope.imaging.pipeline import check, require_rgb, transforms
from leukoscope.imaging.read import read_image
from leukoscope.parallel import WORKERS, ahead

BATCH = 32  # answers made of logits and features at a time

Seen = tuple[np.ndarray, np.ndarray] | UnreadableError
See = Callable[[list[Path]], list[tuple[Path, Seen]]]

REPEATED = 0.1
"""How far a rehearsed int8 answer may be from the stated one, relative to the largest logit."""


@dataclass(frozen=True)
class Answers:
    """What the model says about n images, in the order given.

    probs: (n, k) calibrated, in [0, 1]. sets: (n, k) bool, the prediction sets. novelty: (n,),
    above 1 is novel. features: (n, d).
    """

    probs: np.ndarray
    sets: np.ndarray
    novelty: np.ndarray
    features: np.ndarray

    def flag(self, row: int) -> str:
        """`novel`, else `doubtful` where the prediction set isn't the predicted class alone (it may
        be another class: each has a threshold of its own), else ""."""
        if self.novelty[row] > 1:
            return "novel"
        inside = np.flatnonzero(self.sets[row])
        return "" if inside.tolist() == [int(self.probs[row].argmax())] else "doubtful"


class Reader:
    """A bundle, loaded and verified: reads images as its contract says."""

    def __init__(
        self, contract: Contract, graph: bytes, *, engine: str = "onnxruntime", images: int = 0
    ) -> None:
        """`engine` as in engines.NAMES; `auto` looks at how many `images` are to come."""
        self.contract = contract
        check(contract.preprocessing)
        try:
            if engine == "auto":
                size, precision = contract.input.size, contract.model.precision
                engine = choose(graph, size, precision, images)
            self.engine = open_engine(graph, engine)
        except InputError:
            raise
        except Exception as problem:  # noqa: BLE001 - its errors share no class of their own
            raise InputError(
                f"The graph can't be loaded: {str(problem).splitlines()[0][:200]}",
                fix="Export the bundle again.",
                field="bundle",
            ) from None
        self._check_outputs()
        self._rehearse()

    @classmethod
    def load(cls, folder: Path, *, engine: str = "onnxruntime", images: int = 0) -> Reader:
        """A bundle from its folder; InputError where it is incomplete, damaged or tampered with."""
        contract = contracts.read(folder, sealed=True)
        # Its bytes, since ONNX Runtime takes no path that isn't UTF-8.
        graph = contracts.verify_graph(folder, contract).read_bytes()
        return cls(contract, graph, engine=engine, images=images)

    def _check_outputs(self) -> None:
        found = self.engine.outputs
        wanted = self.contract.model.outputs
        if found != wanted:
            raise InputError(
                f"The graph gives {', '.join(found)}; its contract says {', '.join(wanted)}",
                fix="Export the bundle again.",
                field="bundle",
            )

    def _rehearse(self) -> None:
        """Answer for one blank image, so that a contract that doesn't fit its graph fails here."""
        blank = np.zeros((1, 3, *self.contract.input.size), np.float32)
        try:
            found = self.run(blank, ("logits",))[0].shape[1]
            if found != len(self.contract.classes):
                raise ValueError(f"{found} logits, {len(self.contract.classes)} classes")
            self.answer(blank)
            self._repeat()
        except InputError:
            raise
        except Exception as problem:  # noqa: BLE001 - ONNX Runtime's share no class of their own
            why = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise InputError(
                f"The contract doesn't fit its graph: {why[:200]}",
                fix="Export the bundle again.",
                field="bundle",
            ) from None

    def _repeat(self) -> None:
        """InputError where this processor's integer arithmetic isn't that which was judged."""
        wanted = np.array(self.contract.model.rehearsal)
        if not wanted.size:
            return
        found = self.run(noise(self.contract.input.size), ("logits",))[0][0]
        if np.abs(found - wanted).max() > REPEATED * np.abs(wanted).max():
            raise InputError(
                "This processor computes the int8 graph otherwise than where it was judged",
                fix="Export the run with --precision fp32 and use that bundle here.",
                field="bundle",
            )

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) to float32 (3, h, w): preprocessing chain, then mean and std."""
        return prepare(image, self.contract)

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Chosen outputs of the graph for (n, 3, h, w) prepared images."""
        return self.engine.run(images, outputs)

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """(n, k) probabilities of (n, k) logits."""
        return softmax(logits, self.contract.temperature)

    def answer(self, images: np.ndarray) -> Answers:
        """Calibrated probabilities, prediction sets and novelty of (n, 3, h, w) prepared images."""
        logits, features = self.run(images, ("logits", "features"))
        return answers(logits, features, self.contract)

    def read(
        self, paths: Iterable[Path], spread: Spread = ahead, see: See | None = None
    ) -> Iterator[tuple[Path, Answers | UnreadableError]]:
        """Read files with bounded memory, in order; a bad file is its own answer.

        `spread` and `see`: a cluster, and what its workers look with.

        Every thread takes an image the whole way from the file to the features, so that all cores
        are busy whatever decoding and model cost, and pixels never wait for anything.
        """
        source = iter(paths)
        groups = iter(lambda: list(islice(source, self.engine.batch)), [])
        held: list[tuple[Path, Seen]] = []
        # Each core has its thread; BLAS's own would wait for work beside them, busily.
        with threadpool_limits(limits=1, user_api="blas"):
            for group in spread(see or self.see, groups, 4 * WORKERS):
                held += group
                if len(held) >= BATCH:
                    yield from self._answered(held)
                    held = []
            yield from self._answered(held)

    def see(self, paths: list[Path]) -> list[tuple[Path, Seen]]:
        """Each file's logits (k,) and features (d,), or why there are none."""
        loaded = [self._image_or_why(path) for path in paths]
        good = [image for image in loaded if isinstance(image, np.ndarray)]
        said = self.run(np.stack(good), ("logits", "features")) if good else [(), ()]
        rows = zip(*said, strict=True)
        return [
            (path, next(rows) if isinstance(image, np.ndarray) else image)
            for path, image in zip(paths, loaded, strict=True)
        ]

    def image(self, path: Path) -> np.ndarray:
        """A file as the graph takes it, float32 (3, h, w); UnreadableError says why not."""
        return self.prepare(read_image(path))

    def _image_or_why(self, path: Path) -> np.ndarray | UnreadableError:
        try:
            return self.image(path)
        except UnreadableError as problem:
            return problem

    def _answered(
        self, held: list[tuple[Path, Seen]]
    ) -> Iterator[tuple[Path, Answers | UnreadableError]]:
        good = [seen for _, seen in held if isinstance(seen, tuple)]
        if good:
            logits, features = (np.stack(part) for part in zip(*good, strict=True))
            said = answers(logits, features, self.contract)
        place = 0
        for path, seen in held:
            if isinstance(seen, UnreadableError):
                yield path, seen
                continue
            row = slice(place, place + 1)
            yield path, Answers(said.probs[row], said.sets[row], said.novelty[row],
                                said.features[row])  # fmt: skip
            place += 1


def prepare(image: np.ndarray, contract: Contract) -> np.ndarray:
    """uint8 RGB (H, W, 3) to float32 (3, h, w) as a contract says: chain, then mean and std."""
    require_rgb(image)
    pixels = image
    for step in contract.preprocessing:  # checked when the contract was read
        settings = {key: value for key, value in step.items() if key != "step"}
        pixels = transforms[step["step"]](pixels, **settings)
    if pixels.shape[:2] != tuple(contract.input.size):
        raise InputError(
            f"The preprocessing chain gives {pixels.shape[0]}x{pixels.shape[1]}, the model "
            f"takes {contract.input.size[0]}x{contract.input.size[1]}",
            fix="Export the bundle again.",
            field="preprocessing",
        )
    return normalise(pixels, contract.input.mean, contract.input.std)


class FarReader:
    """`Reader.see` on another machine, which is sent the bundle, whole and verified."""

    def __init__(self, bundle: Path, engine: str) -> None:
        """`engine` as in engines.NAMES but `auto`, that all machines take the same one."""
        contract = contracts.read(bundle, sealed=True)
        self.given = contract, contracts.verify_graph(bundle, contract).read_bytes(), engine
        self.reader: Reader | None = None

    def __call__(self, paths: list[Path]) -> list[tuple[Path, Seen]]:
        if self.reader is None:
            contract, graph, engine = self.given
            self.reader = Reader(contract, graph, engine=engine)
        return self.reader.see(paths)


def noise(size: tuple[int, int]) -> np.ndarray:
    """The same standard normal float32 (1, 3, h, w) everywhere, of which an int8 bundle knows the
    answer."""
    return np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)


def answers(logits: np.ndarray, features: np.ndarray, contract: Contract) -> Answers:
    """What (n, k) logits and (n, d) features mean under a contract."""
    probs = softmax(logits, contract.temperature)
    sets = contract.prediction_sets
    inside = (
        prediction_sets(probs, sets.thresholds)
        if sets is not None
        else probs >= probs.max(axis=1, keepdims=True)
    )
    novelty = (
        score(features, logits, contract.novelty) / contract.novelty["threshold"]
        if contract.novelty is not None
        else np.full(len(logits), np.nan)
    )
    return Answers(probs, inside, novelty, features)
