"""Nucleus segmentation and cell finding against BCCD's masks and boxes.

    python benchmarks/segmentation.py [DATA] [--every N]

DATA holds `bccd/{images,nucleus,annotations}` (default: ../shared/data). Prints, for the whole set
and for the half that nothing was developed on, the median and 10th percentile of Dice of every
method; the same for `nucleus` under shifts of colour, light and stain and on single-cell crops of
120 to 640 px; and recall and precision of `find_cells` at IoU .5 at three magnifications. Takes
every N-th image only, for a quick look.
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from leukoscope.imaging.cells import Box, find_cells
from leukoscope.imaging.read import read_image
from leukoscope.imaging.segmentation import Method, segment

Pair = tuple[np.ndarray, np.ndarray]
Shift = Callable[[np.ndarray], np.ndarray]


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


def single_cells(pairs: Iterable[Pair]) -> list[Pair]:
    """Square crops around each nucleus, 1.3 to 3 times its size, at 120 to 640 px."""
    generator, crops = np.random.default_rng(5), []
    for image, mask in pairs:
        near = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8))
        for x, y, width, height, _ in cv2.connectedComponentsWithStats(near)[2][1:]:
            side = int(min((max(width, height) - 24) * generator.uniform(1.3, 3), *mask.shape))
            shift = generator.uniform(-0.1, 0.1, 2) * side
            left = int(np.clip(x + width / 2 + shift[0] - side / 2, 0, mask.shape[1] - side))
            top = int(np.clip(y + height / 2 + shift[1] - side / 2, 0, mask.shape[0] - side))
            window = slice(top, top + side), slice(left, left + side)
            size = int(generator.choice([120, 160, 224, 300, 360, 480, 640]))
            shrink = size < side
            cut = cv2.resize(
                image[window],
                (size, size),
                interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC,
            )
            inside = cv2.resize(mask[window].astype(np.float32), (size, size)) > 0.5
            if inside.any():
                crops.append((cut, inside))
    return crops


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
    "less eosin": stain([[1.2, 0, 0], [0, 0.7, 0.1], [0, 0.3, 1]]),
    "redder nuclei": stain([[0.6, 0.15, 0], [0, 1.1, 0], [0, 0.1, 1.3]]),
    "bluer nuclei": stain([[1.3, 0.2, 0], [0.3, 0.9, 0], [0.3, 0, 0.7]]),
    "noise, sd 8": noise,
    "blur, sd 2": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
}


def score(pairs: Sequence[Pair], method: Method = "nucleus", shift: Shift = SHIFTS["none"]) -> str:
    values = [dice(segment(shift(image), method) > 0, mask) for image, mask in pairs]
    return f"{np.median(values):.3f} | {np.percentile(values, 10):.3f}"


def find(bccd: Path, stems: Sequence[str], scale: float = 1.0) -> tuple[float, float]:
    """Recall and precision of white cells at IoU .5, fields resized by `scale`."""
    hits = found = wanted = 0
    for stem in stems:
        image, _ = load(bccd, stem)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        cells = find_cells(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how))
        truth = [
            Box(*(round(scale * v) for v in (box.x, box.y, box.width, box.height)))
            for box in boxes(bccd, stem)
        ]
        found, wanted = found + len(cells), wanted + len(truth)
        for cell in cells:
            best = max(truth, key=cell.intersection_over_union, default=None)
            if best is not None and cell.intersection_over_union(best) >= 0.5:
                truth.remove(best)
                hits += 1
    return hits / max(wanted, 1), hits / max(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    bccd = arguments.data / "bccd"
    stems = names(bccd)
    parts = {"all": stems, "confirmation half": halves(stems)[1]}
    parts = {title: part[:: arguments.every] for title, part in parts.items()}
    pairs = {title: [load(bccd, stem) for stem in part] for title, part in parts.items()}

    print("| method | images | median Dice | 10th percentile |\n|---|---|---|---|")
    methods: tuple[Method, ...] = ("otsu", "hsv", "nucleus")
    for method in methods:
        for title, some in pairs.items():
            print(f"| {method} | {title} ({len(some)}) | {score(some, method)} |", flush=True)
    confirmation = pairs["confirmation half"]
    crops = single_cells(confirmation)
    print(
        "\n| nucleus under | fields: median | 10th | crops: median | 10th |\n|---|---|---|---|---|"
    )
    for title, shift in SHIFTS.items():
        fields = score(confirmation, shift=shift)
        print(f"| {title} | {fields} | {score(crops, shift=shift)} |", flush=True)
    print("\n| white cells | magnification | recall | precision |\n|---|---|---|---|")
    for title, part in parts.items():
        for scale in (0.5, 1.0, 2.0):
            recall, precision = find(bccd, part, scale)
            print(f"| {title} | x {scale} | {recall:.3f} | {precision:.3f} |", flush=True)


if __name__ == "__main__":
    main()
