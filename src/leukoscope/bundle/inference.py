"""Inference by ONNX Runtime: images in, logits, features and heat maps out. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.bundle import contract as contracts
from leukoscope.bundle.contract import Contract
from leukoscope.compat import onnx_session
from leukoscope.errors import InputError, UnreadableError
from leukoscope.evaluate.calibration import prediction_sets, softmax
from leukoscope.evaluate.novelty import score
from leukoscope.imaging.colour import normalise
from leukoscope.imaging.pipeline import apply
from leukoscope.imaging.read import read_image
from leukoscope.parallel import ahead

BATCH = 16


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


class Reader:
    """A bundle, loaded and verified: reads images as its contract says."""

    def __init__(self, contract: Contract, graph: bytes, *, threads: int = 0) -> None:
        self.contract = contract
        try:
            self.session = onnx_session(graph, threads)
        except Exception as problem:  # noqa: BLE001 - its errors share no class of their own
            raise InputError(
                f"The graph can't be loaded: {str(problem).splitlines()[0][:200]}",
                fix="Export the bundle again.",
                field="bundle",
            ) from None
        self._check_outputs()
        self._rehearse()

    @classmethod
    def load(cls, folder: Path) -> Reader:
        """A bundle from its folder; InputError where it is incomplete, damaged or tampered with."""
        contract = contracts.read(folder)
        # Its bytes, since ONNX Runtime takes no path that isn't UTF-8.
        return cls(contract, contracts.verify_graph(folder, contract).read_bytes())

    def _check_outputs(self) -> None:
        found = tuple(output.name for output in self.session.get_outputs())
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
        except Exception as problem:  # noqa: BLE001 - ONNX Runtime's share no class of their own
            why = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise InputError(
                f"The contract doesn't fit its graph: {why[:200]}",
                fix="Export the bundle again.",
                field="bundle",
            ) from None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) to float32 (3, h, w): preprocessing chain, then mean and std."""
        pixels = apply(image, self.contract.preprocessing)
        if pixels.shape[:2] != tuple(self.contract.input.size):
            raise InputError(
                f"The preprocessing chain gives {pixels.shape[0]}x{pixels.shape[1]}, the model "
                f"takes {self.contract.input.size[0]}x{self.contract.input.size[1]}",
                fix="Export the bundle again.",
                field="preprocessing",
            )
        return normalise(pixels, self.contract.input.mean, self.contract.input.std)

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Chosen outputs of the graph for (n, 3, h, w) prepared images."""
        return self.session.run(list(outputs), {"images": images})

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """(n, k) probabilities of (n, k) logits."""
        return softmax(logits, self.contract.temperature)

    def answer(self, images: np.ndarray) -> Answers:
        """Calibrated probabilities, prediction sets and novelty of (n, 3, h, w) prepared images."""
        logits, features = self.run(images, ("logits", "features"))
        return answers(logits, features, self.contract)

    def read(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Answers | UnreadableError]]:
        """Read files, many at a time with bounded memory, in order; a bad file is its own answer.

        Decoding runs ahead in threads while the model works on the batch before.
        """
        batch: list[tuple[Path, Any]] = []
        for item in ahead(self._load, paths, 2 * BATCH):
            batch.append(item)
            if len(batch) == BATCH:
                yield from self._flush(batch)
                batch = []
        yield from self._flush(batch)

    def _load(self, path: Path) -> tuple[Path, np.ndarray | UnreadableError]:
        try:
            return path, self.prepare(read_image(path))
        except UnreadableError as problem:
            return path, problem

    def _flush(
        self, batch: list[tuple[Path, Any]]
    ) -> Iterator[tuple[Path, Answers | UnreadableError]]:
        good = [value for _, value in batch if isinstance(value, np.ndarray)]
        said = self.answer(np.stack(good)) if good else None
        place = 0
        for path, value in batch:
            if isinstance(value, UnreadableError):
                yield path, value
                continue
            assert said is not None
            row = slice(place, place + 1)
            yield path, Answers(said.probs[row], said.sets[row], said.novelty[row],
                                said.features[row])  # fmt: skip
            place += 1


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
