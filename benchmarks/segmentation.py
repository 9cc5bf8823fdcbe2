"""Nucleus segmentation and cell finding against BCCD's masks and boxes.

    python benchmarks/segmentation.py [DATA] [--every N]

DATA holds `bccd/{images,nucleus,annotations}` (default: ../shared/data). Prints Markdown: median
and 10th percentile of Dice of every method on the half that things were developed on and on the
half that only confirms; recall and precision of `find_cells` at IoU .5; and, on the second
half, `nucleus` at other sizes, in other stains and light, on whole fields and on single-cell crops.
`--every N` takes every N-th image only, for a quick look.
"""

from __future__ import annotations

import argparse
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from leukoscope.imaging.cells import Box, find_cells
from leukoscope.imaging.read import read_image
from leukoscope.imaging.segmentation import segment
from leukoscope.parallel import ahead

Pair = tuple[np.ndarray, np.ndarray]
Shift = Callable[[np.ndarray], np.ndarray]
Counts = tuple[int, int, int]

METHODS: dict[str, Shift] = {
    "nucleus": segment,
    "otsu, dark": lambda image: segment(image, "otsu", "dark"),
    "otsu, bright": lambda image: segment(image, "otsu", "bright"),
    "hsv": lambda image: segment(image, "hsv"),
}
CROPS = (120, 160, 224, 320, 480, 640)


def names(bccd: Path) -> list[str]:
    return sorted(path.stem for path in (bccd / "images").glob("*.jpg"))


def halves(stems: Sequence[str]) -> tuple[list[str], list[str]]:
    """The development half and the confirmation half, by a fixed permutation."""
    order = np.random.default_rng(0).permutation(len(stems))
    half = len(stems) // 2
    return sorted(stems[i] for i in order[:half]), sorted(stems[i] for i in order[half:])


def load(bccd: Path, stem: str) -> Pair:
    """A field, uint8 RGB, and its nuclei, bool (H, W)."""
    mask = read_image(bccd / "nucleus" / f"{stem}.png")
    return read_image(bccd / "images" / f"{stem}.jpg"), mask[:, :, 0] > 127


def boxes(bccd: Path, stem: str, label: str = "WBC") -> list[Box]:
    found = []
    for entry in ElementTree.parse(bccd / "annotations" / f"{stem}.xml").iter("object"):
        if entry.findtext("name") == label:
            left, top, right, bottom = (
                int(float(entry.findtext(f"bndbox/{key}") or "nan"))
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
            found.append(Box(left, top, right - left, bottom - top))
    return found


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean masks; 1 for two empty ones."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def resized(pair: Pair, height: int, width: int) -> Pair:
    """An image and its mask at another size."""
    image, mask = pair
    how = cv2.INTER_AREA if height < mask.shape[0] else cv2.INTER_CUBIC
    inside = cv2.resize(mask.astype(np.float32), (width, height), interpolation=how)
    return cv2.resize(image, (width, height), interpolation=how), inside > 0.5


def scaled(pair: Pair, scale: float) -> Pair:
    height, width = pair[1].shape
    return resized(pair, round(scale * height), round(scale * width))


def single_cells(pairs: Iterable[Pair], size: int | None = None) -> list[Pair]:
    """Square crops around each nucleus, 1.3 to 3 times its size, at `size` px or one of CROPS."""
    generator, crops = np.random.default_rng(5), []
    for image, mask in pairs:
        near = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8))
        for x, y, width, height, _ in cv2.connectedComponentsWithStats(near)[2][1:]:
            side = int(min((max(width, height) - 24) * generator.uniform(1.3, 3), *mask.shape))
            shift = generator.uniform(-0.1, 0.1, 2) * side
            left = int(np.clip(x + width / 2 + shift[0] - side / 2, 0, mask.shape[1] - side))
            top = int(np.clip(y + height / 2 + shift[1] - side / 2, 0, mask.shape[0] - side))
            window = slice(top, top + side), slice(left, left + side)
            drawn = int(generator.choice(CROPS))
            crop = resized((image[window], mask[window]), size or drawn, size or drawn)
            if crop[1].any():
                crops.append(crop)
    return crops


def cut_out(pair: Pair) -> Pair:
    """The cell on black, as in C-NMC: what lies farther than a quarter of a nucleus is gone."""
    image, mask = pair
    reach = int(0.25 * np.sqrt(4 * mask.sum() / np.pi))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return image * cv2.dilate(mask.astype(np.uint8), disc)[:, :, None], mask


def levels(function: Callable[[np.ndarray], np.ndarray]) -> Shift:
    table = np.clip(function(np.arange(256.0)), 0, 255).astype(np.uint8)
    return lambda image: cv2.LUT(image, table)


def hsv(hue: int = 0, saturation: float = 1.0) -> Shift:
    """Turn the hue by degrees, multiply the saturation."""

    def shift(image: np.ndarray) -> np.ndarray:
        planes = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL).astype(np.float32)
        planes[:, :, 0] = (planes[:, :, 0] + hue * 256 / 360) % 256
        planes[:, :, 1] = np.clip(planes[:, :, 1] * saturation, 0, 255)
        return cv2.cvtColor(planes.astype(np.uint8), cv2.COLOR_HSV2RGB_FULL)

    return shift


def tint(*gains: float) -> Shift:
    return lambda image: np.clip(image * np.array(gains), 0, 255).astype(np.uint8)


def stain(matrix: Sequence[Sequence[float]]) -> Shift:
    """Mix the optical densities of the channels: another dye in the same cells."""

    def shift(image: np.ndarray) -> np.ndarray:
        light = np.percentile(image.reshape(-1, 3), 95, axis=0)
        density = -np.log10(np.maximum(image, 1) / light) @ np.array(matrix).T
        return np.clip(light * 10**-density, 0, 255).astype(np.uint8)

    return shift


def dyes(function: Shift) -> Shift:
    """Change the optical density of all channels: how much dye, or how it rises."""

    def shift(image: np.ndarray) -> np.ndarray:
        light = np.percentile(image.reshape(-1, 3), 95, axis=0)
        density = np.maximum(-np.log10(np.maximum(image, 1) / light), 0)
        return np.clip(light * 10 ** -function(density), 0, 255).astype(np.uint8)

    return shift


def noise(image: np.ndarray) -> np.ndarray:
    added = np.random.default_rng(1).normal(0, 8, image.shape)
    return np.clip(image + added, 0, 255).astype(np.uint8)


SHIFTS: dict[str, Shift] = {
    "none": lambda image: image,
    "hue -20 degrees": hsv(-20),
    "hue +20 degrees": hsv(20),
    "hue +40 degrees": hsv(40),
    "half the saturation": hsv(0, 0.5),
    "brightness x 0.6": levels(lambda x: 0.6 * x),
    "brightness x 1.2": levels(lambda x: 1.2 * x),
    "contrast x 0.6": levels(lambda x: 0.6 * (x - 128) + 140),
    "contrast x 1.4": levels(lambda x: 1.4 * (x - 128) + 128),
    "gamma 0.6": levels(lambda x: 255 * (x / 255) ** 0.6),
    "gamma 1.6": levels(lambda x: 255 * (x / 255) ** 1.6),
    "yellow light": tint(1, 0.95, 0.7),
    "blue light": tint(0.75, 0.85, 1),
    "0.6 of the dye": dyes(lambda density: 0.6 * density),
    "1.5 of the dye": dyes(lambda density: 1.5 * density),
    "density ^ 0.8": dyes(lambda density: density**0.8),
    "density ^ 1.25": dyes(lambda density: density**1.25),
    "less eosin": stain([[1.2, 0, 0], [0, 0.7, 0.1], [0, 0.3, 1]]),
    "redder nuclei": stain([[0.6, 0.15, 0], [0, 1.1, 0], [0, 0.1, 1.3]]),
    "bluer nuclei": stain([[1.3, 0.2, 0], [0.3, 0.9, 0], [0.3, 0, 0.7]]),
    "noise, sd 8": noise,
    "blur, sd 2": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
}


def scores(pairs: Sequence[Pair], method: Shift = segment) -> list[float]:
    """Dice of every pair."""
    return list(ahead(lambda pair: dice(method(pair[0]) > 0, pair[1]), pairs))


def summary(values: Sequence[float]) -> str:
    if not values:
        return "- | -"
    return f"{np.median(values):.3f} | {np.percentile(values, 10):.3f}"


def counts(bccd: Path, stem: str, scale: float = 1.0) -> Counts:
    """Cells hit at IoU .5, found, and annotated, in one field resized by `scale`."""
    image = read_image(bccd / "images" / f"{stem}.jpg")
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    cells = find_cells(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how))
    truth = [
        Box(*(round(scale * v) for v in (box.x, box.y, box.width, box.height)))
        for box in boxes(bccd, stem)
    ]
    wanted, hits = len(truth), 0
    for cell in cells:
        best = max(truth, key=cell.intersection_over_union, default=None)
        if best is not None and cell.intersection_over_union(best) >= 0.5:
            truth.remove(best)
            hits += 1
    return hits, len(cells), wanted


def find(bccd: Path, stems: Sequence[str], scale: float = 1.0) -> tuple[float, float]:
    """Recall and precision of white cells at IoU .5, fields resized by `scale`."""
    each = ahead(lambda stem: counts(bccd, stem, scale), stems)
    hits, found, wanted = np.sum(list(each), axis=0).tolist()
    return hits / max(wanted, 1), hits / max(found, 1)


def methods_table(halves_pairs: dict[str, list[Pair]]) -> None:
    line("method", "half", "n", "median Dice", "10th percentile")
    rule(5)
    for method, run in METHODS.items():
        values = {half: scores(pairs, run) for half, pairs in halves_pairs.items()}
        values["both"] = [value for some in values.values() for value in some]
        for half, some in values.items():
            line(method, half, len(some), summary(some))


def cells_table(bccd: Path, parts: dict[str, list[str]]) -> None:
    line("half", "fields", "magnification", "recall", "precision")
    rule(5)
    for half, stems in parts.items():
        for scale in (0.25, 0.5, 1.0, 2.0) if half == "confirmation" else (1.0,):
            recall, precision = find(bccd, stems, scale)
            line(half, len(stems), f"x {scale:g}", f"{recall:.3f} | {precision:.3f}")


def sizes_table(pairs: Sequence[Pair]) -> None:
    line("images", "n", "median Dice", "10th percentile")
    rule(4)
    for scale in (0.25, 0.5, 1.0, 2.0):
        values = scores([scaled(pair, scale) for pair in pairs])
        line(f"fields of {640 * scale:.0f}x{480 * scale:.0f} px", len(values), summary(values))
    for size in CROPS:
        values = scores(single_cells(pairs, size))
        line(f"single cells at {size} px", len(values), summary(values))
    values = scores([cut_out(pair) for pair in single_cells(pairs)])
    line("single cells cut out on black", len(values), summary(values))


def shifts_table(pairs: Sequence[Pair]) -> None:
    crops = single_cells(pairs)
    line("change", "fields: median", "10th percentile", "single cells: median", "10th percentile")
    rule(5)
    for title, shift in SHIFTS.items():

        def shifted(image: np.ndarray, shift: Shift = shift) -> np.ndarray:
            return segment(shift(image))

        line(title, summary(scores(pairs, shifted)), summary(scores(crops, shifted)))


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def rule(columns: int) -> None:
    line(*["---"] * columns)


def heading(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    # The images are what is spread over the cores.
    cv2.setNumThreads(1)
    bccd = arguments.data / "bccd"
    first, second = halves(names(bccd))
    parts = {"development": first[:: arguments.every], "confirmation": second[:: arguments.every]}
    pairs = {half: list(ahead(lambda s: load(bccd, s), stems)) for half, stems in parts.items()}
    heading("Nucleus masks of BCCD's fields, 640x480:")
    methods_table(pairs)
    heading("White cells of BCCD's fields at IoU .5:")
    cells_table(bccd, parts)
    heading("`nucleus` at other sizes, confirmation half:")
    sizes_table(pairs["confirmation"])
    heading("`nucleus` in other stains and light, confirmation half:")
    shifts_table(pairs["confirmation"])
    heading(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
