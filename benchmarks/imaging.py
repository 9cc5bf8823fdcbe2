"""Imaging at 224 px against scikit-image: the papers' steps and our nucleus segmentation.

    python benchmarks/imaging.py [DATA] [--images 48] [--rounds 7] [-o FILE.md]

DATA is a folder of images (default: ../shared/data/pbc-mini), of which `--images` are taken evenly
and resized to 224 px. Every operation is timed in alternation with the same operation written with
scikit-image (and the scipy.ndimage that it is built on), on one thread and on as many as
each library takes by itself; the results of both are compared pixel by pixel. A second table times
the recipes' preprocessing chains as `predict` runs them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from common import alternate, machine, markdown
from scipy import ndimage
from skimage import color, exposure, filters, measure, morphology  # type: ignore[attr-defined]

from leukoscope.imaging import colour, enhancement, segmentation
from leukoscope.imaging.pipeline import Chain, apply
from leukoscope.imaging.read import read_image

Operation = Callable[[np.ndarray], np.ndarray]
SIDE = 224
ELLIPSE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


# The same operations with scikit-image.


def logmh(image: np.ndarray) -> np.ndarray:
    """Recipe 2: alpha I - beta Laplacian(Gaussian(I)) with sigma, alpha and beta 1, min-max."""
    values = image.astype(np.float64)
    smooth = filters.gaussian(values, 1, mode="mirror", channel_axis=-1)
    result = np.empty(image.shape, np.uint8)
    for channel in range(3):
        boosted = values[..., channel] - ndimage.laplace(smooth[..., channel], mode="mirror")
        stretched = exposure.rescale_intensity(boosted, out_range=(0, 255))
        result[..., channel] = np.rint(stretched)
    return result


def luminance(image: np.ndarray) -> np.ndarray:
    """BT.601, uint8; scikit-image's `rgb2gray` has the weights of BT.709."""
    return np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def otsu(image: np.ndarray) -> np.ndarray:
    """Recipe 3: dark pixels by Otsu's threshold, closed by an ellipse of 5 px."""
    grey = luminance(image)
    return morphology.closing((grey <= filters.threshold_otsu(grey)).astype(np.uint8), ELLIPSE) > 0


def hsv(image: np.ndarray) -> np.ndarray:
    """Recipe 5: hue 110 to 175 half degrees, saturation above Otsu's threshold."""
    planes = color.rgb2hsv(image)
    hue = np.rint(planes[..., 0] * 180) % 180
    saturation = np.rint(planes[..., 1] * 255).astype(np.uint8)
    above = saturation > filters.threshold_otsu(saturation)
    return (hue >= 110) & (hue <= 175) & above


def nucleus(image: np.ndarray) -> np.ndarray:
    """`segmentation.nucleus`, step by step."""
    light = background(image)
    black = image.max(axis=2) < colour.BLACK * light.max()
    if black.mean() > 0.005:
        rim = max(1, round(0.01 * max(black.shape)))
        black = morphology.dilation(black, morphology.footprint_rectangle((2 * rim + 1,) * 2))
    pixels = np.where(black[..., None], np.rint(light), image)
    dye = np.maximum(np.clip(1 - pixels / light, 0, 1) @ np.array([1, 1, -1.25]), 0)
    coarse = smoothed(dye, 0.005 * max(black.shape))
    top = float(coarse.max())
    if top < segmentation.MINIMAL_CONTRAST:
        return np.zeros(dye.shape, bool)
    levels = (coarse * ((segmentation.LEVELS - 1) / top)).astype(np.uint8)
    high = int(filters.threshold_multiotsu(levels, classes=3)[1])
    upper = levels[levels > high]
    while upper.mean() < 0.52 * upper.max():
        high = int(filters.threshold_otsu(upper))
        upper = upper[upper > high]
    threshold = (high + 1) / (segmentation.LEVELS - 1) * top
    diameter = segmentation.equivalent_diameter(areas(measure.label(coarse > threshold)).max())
    threshold *= 0.97
    fine = smoothed(dye, 0.035 * diameter)
    absorbed = np.clip(np.log10(np.maximum(light, 1)) - np.log10(np.maximum(pixels, 1)), 0, 2)
    density = absorbed @ np.array([1, 1, -0.5])
    stained = without_small(fine > threshold)
    some = slice(None, None, max(1, min(stained.shape) // 56))
    around = float(np.median(density[some, some][~stained[some, some]]))
    mask = without_cytoplasm(stained, smoothed(density, 0.05 * diameter), around)
    cytoplasm = stained & ~mask
    mask = without_small(at_the_edge(mask, fine, threshold, diameter) & ~cytoplasm)
    holes = measure.label(~mask, connectivity=1)
    small = areas(holes) < 0.06 * mask.sum()
    small[0] = False
    return mask | small[holes]


def background(image: np.ndarray) -> np.ndarray:
    grey = luminance(image)
    counts = np.bincount(grey.ravel(), minlength=256)
    counts[: int(colour.BLACK * np.searchsorted(np.cumsum(counts), 0.999 * grey.size))] = 0
    bright = image[grey >= np.searchsorted(np.cumsum(counts), 0.9 * counts.sum())]
    return np.maximum(np.percentile(bright, 50, axis=0, method="lower"), 1)


def smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    return filters.gaussian(values, max(sigma, 0.5), mode="mirror")


def areas(labels: np.ndarray) -> np.ndarray:
    """Pixels of each label, of the background 0."""
    found = np.bincount(labels.ravel())
    found[0] = 0
    return found


def without_small(mask: np.ndarray) -> np.ndarray:
    labels = measure.label(mask)
    sizes = areas(labels)
    large = sizes >= 0.15 * sizes.max()
    large[0] = False
    if large[1:].all():
        return mask
    away = ndimage.distance_transform_edt(~large[labels])
    close = away <= 0.15 * segmentation.equivalent_diameter(sizes.max())
    lobe = np.bincount(labels[close], minlength=len(sizes)) > 0
    lobe &= sizes >= 0.05 * sizes.max()
    lobe[0] = False
    return (large | lobe)[labels]


def without_cytoplasm(mask: np.ndarray, density: np.ndarray, around: float) -> np.ndarray:
    result = mask.copy()
    for region in measure.regionprops(measure.label(mask)):
        inside, values = region.image, density[region.slice]
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        core = values[depth > 0.04 * region.equivalent_diameter_area + 1]
        cut = denser(core, around)
        if cut is not None:
            result[region.slice][inside & (values <= cut)] = False
    return result


def denser(values: np.ndarray, around: float) -> float | None:
    if values.size < 20 or np.ptp(values) < 1e-6:
        return None
    low, span = values.min(), np.ptp(values)
    levels = ((values - low) * (255 / span)).astype(np.uint8)
    cut = filters.threshold_otsu(levels)
    upper = levels > cut
    share = upper.mean()
    if share < 0.5 or share == 1:
        return None
    dense, pale = values[upper].mean(), values[~upper].mean()
    contrast = (dense - pale) / max(dense - around, 1e-6)
    separability = share * (1 - share) * (dense - pale) ** 2 / values.var()
    return low + (cut + 1) / 255 * span if contrast * separability > 0.25 else None


def at_the_edge(mask: np.ndarray, dye: np.ndarray, threshold: float, diameter: float) -> np.ndarray:
    away = ndimage.distance_transform_edt(~mask)
    inside = dye[ndimage.distance_transform_edt(mask) > 0.06 * diameter]
    around = dye[(away > 0.08 * diameter) & (away <= 0.3 * diameter)]
    if inside.size == 0 or around.size == 0:
        return mask
    middle = (np.median(inside) + np.median(around)) / 2
    return (dye > 0.7 * threshold + 0.3 * middle) & (away <= 0.1 * diameter)


# name: ours, scikit-image's.
PAIRS: dict[str, tuple[Operation, Operation]] = {
    "LoGMH": (enhancement.logmh, logmh),
    "Otsu + closing": (lambda image: segmentation.segment(image, "otsu") > 0, otsu),
    "HSV mask": (lambda image: segmentation.segment(image, "hsv") > 0, hsv),
    "nucleus": (lambda image: segmentation.segment(image) > 0, nucleus),
}
CHAINS: dict[str, Chain] = {
    "resize": [{"step": "resize", "size": SIDE}],
    "resize, stretch_contrast": [{"step": "resize", "size": SIDE}, {"step": "stretch_contrast"}],
    "resize, equalise_luminance": [
        {"step": "resize", "size": SIDE},
        {"step": "equalise_luminance"},
    ],
    "resize, logmh": [{"step": "resize", "size": SIDE}, {"step": "logmh"}],
    "resize, otsu_mask": [{"step": "resize", "size": SIDE}, {"step": "otsu_mask"}],
    "resize, hsv_mask": [{"step": "resize", "size": SIDE}, {"step": "hsv_mask"}],
}


def agreement(ours: Operation, theirs: Operation, images: Sequence[np.ndarray]) -> list[float]:
    """Of every image the share of values that are equal; levels may differ by one."""
    shares = []
    for image in images:
        one, other = ours(image), theirs(image)
        if one.dtype == bool:
            shares.append(float((one == other).mean()))
        else:
            shares.append(float((np.abs(one.astype(int) - other) <= 1).mean()))
    return shares


@contextmanager
def threads(count: int) -> Iterator[None]:
    """OpenCV on that many threads; scikit-image's functions here run on one anyway."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def milliseconds(
    operations: dict[str, Operation], images: Sequence[np.ndarray], rounds: int
) -> dict[str, float]:
    def over(operation: Operation) -> Callable[[], None]:
        def run() -> None:
            for image in images:
                operation(image)

        return run

    taken = alternate({name: over(each) for name, each in operations.items()}, rounds)
    return {name: 1000 * statistics.median(s) / len(images) for name, s in taken.items()}


def against_scikit_image(images: Sequence[np.ndarray], rounds: int) -> str:
    rows = []
    default = cv2.getNumThreads()
    for name, (ours, theirs) in PAIRS.items():
        found = {}
        for count in (1, default):
            with threads(count):
                found[count] = milliseconds({"ours": ours, "theirs": theirs}, images, rounds)
        one, more = found[1], found[default]
        equal = agreement(ours, theirs, images)
        rows.append(
            [
                name,
                f"{one['theirs']:.2f}",
                f"{one['ours']:.3f}",
                f"{one['theirs'] / one['ours']:.1f}",
                f"{more['ours']:.3f}",
                f"{more['theirs'] / more['ours']:.1f}",
                f"{np.median(equal):.5f}",
                f"{min(equal):.5f}",
            ]
        )
    head = ["operation", "scikit-image, ms", "ours on 1 thread, ms", "x", f"ours on {default}, ms"]
    return markdown([*head, "x", "pixels equal, median", "in the worst image"], rows)


def chains(images: Sequence[np.ndarray], rounds: int) -> str:
    operations: dict[str, Operation] = {
        name: partial(apply, chain=chain) for name, chain in CHAINS.items()
    }
    small = [enhancement.resize(image, size=SIDE) for image in images]
    scale = colour.SCALES["imagenet"]
    with threads(1):
        taken = milliseconds(operations, images, rounds)
        taken |= milliseconds({"normalise": lambda i: colour.normalise(i, *scale)}, small, rounds)
    return markdown(["chain", "ms an image, 1 thread"], [[k, f"{v:.3f}"] for k, v in taken.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "pbc-mini"
    parser.add_argument("data", type=Path, nargs="?", default=shared)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, help="also write the page here")
    given = parser.parse_args()
    files = sorted(given.data.rglob("*.jpg"))
    files = files[:: max(1, len(files) // given.images)][: given.images]
    images = [read_image(path) for path in files]
    small = [enhancement.resize(image, size=SIDE) for image in images]
    page = "\n\n".join(
        [
            "# Speed of imaging",
            f"`python benchmarks/imaging.py --images {given.images} --rounds {given.rounds}`: "
            f"{len(files)} images of {given.data.name}, medians of {given.rounds} alternating "
            f"rounds. {machine('opencv-python-headless', 'scikit-image', 'scipy', 'numpy')}",
            f"At {SIDE} px. LoGMH's values count as equal where they differ by at most one level, "
            "mask pixels where they are the same.",
            against_scikit_image(small, given.rounds),
            "The recipes' chains from the decoded image (about 360 px), and `normalise` at "
            f"{SIDE} px:",
            chains(images, given.rounds),
        ]
    )
    print(page, flush=True)
    if given.output:
        given.output.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
