"""Pictures that are the same: byte for byte, or rotated, mirrored, brightened, cropped, recoded.

Three steps, each on what is left by the one before, so that no two pictures are compared without
need and the time grows with n log n:

1. Candidates. Low-frequency DCT magnitudes of the stored thumbnail, unit length: mirroring only
   changes signs, turning transposes, brightness and contrast are lost. Every picture asks with
   itself and with its own 90 % crops and saturated versions (all follow from one small matrix
   product); a forest of random projection trees (Dasgupta and Freund, 2008) answers.
2. Orientation. The signed coefficients of the pair, correlated over the eight orientations.
3. Detail. The correlation of what the thumbnails hold besides broad shading, each in units of its
   local spread, over small shifts: different cells of one shape don't share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from leukoscope.data.signature import SIDE
from leukoscope.parallel import WORKERS, ahead

if TYPE_CHECKING:
    from leukoscope.data.index import CellIndex

CROP = 0.9  # share of each side that a cropped copy keeps
BLACK, WHITE = 51, 208  # grey levels beyond which a change by a fifth may saturate
COARSE, FINE = 8, 12  # frequencies a side for candidates and for orientation
LEAF, TREES = 400, 6  # pictures a leaf of the forest, trees
MOST_A_LEAF = 4  # candidates that a leaf may bring for a picture
MOST_ASKED, MOST_COMPARED = 32, 6  # candidates a picture that reach steps 2 and 3
CANDIDATE, ORIENTED, DETAIL = 0.955, 0.9, 0.87  # least correlations that pass the three steps
SHIFT = 4  # thumbnail pixels
FLAT = 2.0  # standard deviation in grey levels below which there is no picture to compare
_ROWS = 2048  # pictures that are worked on at once
_PRODUCT = 512  # rows of one matrix product, so that it stays near the processor
_STEPS = 100_000  # similarity in whole numbers; 1e-5 is far below what parts two pictures


@dataclass(frozen=True)
class Duplicates:
    """Groups of two or more image names, sorted; `clusters` (n,) numbers each row's group.

    `exact` groups are equal byte for byte. `near` groups hold at least one pair that is not, and
    the byte-equal copies of their members too. Rows without a duplicate have a cluster of their
    own.
    """

    exact: list[list[str]]
    near: list[list[str]]
    clusters: np.ndarray


def find(cells: CellIndex) -> Duplicates:
    """Duplicates among the images of an index, from the signatures that it holds."""
    frame = cells.frame
    # Byte-equal copies need no comparing: the first of each stands for all. Taken in the order of
    # their hashes, nothing depends on the order of the rows.
    _, first, identical = np.unique(
        frame["sha256"].to_numpy(dtype=str), return_index=True, return_inverse=True
    )
    thumbnails = np.stack([as_thumbnail(stored) for stored in frame["thumbnail"].iloc[first]])
    clusters = _clusters(similar(thumbnails), len(first))[identical]
    names = frame["image"].to_numpy(dtype=object)
    exact = _groups(names, identical)
    mixed = pd.Series(identical).groupby(clusters).nunique()
    near = _groups(names, clusters, allowed=set(mixed.index[mixed > 1]))
    return Duplicates(exact, near, clusters)


def as_thumbnail(stored: bytes) -> np.ndarray:
    """The (SIDE, SIDE) uint8 thumbnail of its stored bytes."""
    return np.frombuffer(stored, np.uint8).reshape(SIDE, SIDE)


def _groups(
    names: np.ndarray, numbers: np.ndarray, allowed: set[int] | None = None
) -> list[list[str]]:
    """Names that share a number, two or more, sorted."""
    sizes = np.bincount(numbers)
    shared = np.flatnonzero(sizes[numbers] > 1)
    members: dict[int, list[str]] = {}
    for row in shared:
        if allowed is None or numbers[row] in allowed:
            members.setdefault(int(numbers[row]), []).append(str(names[row]))
    return sorted(sorted(group) for group in members.values())


def similar(thumbnails: np.ndarray) -> np.ndarray:
    """Pairs (m, 2) of rows that show the same picture; of many copies enough to connect them all.

    `thumbnails` is (n, SIDE, SIDE) uint8. Deterministic: the random projections have a fixed seed.
    Flat pictures are never similar to anything.
    """
    textured = np.flatnonzero(thumbnails.reshape(len(thumbnails), -1).std(axis=1) >= FLAT)
    if textured.size < 2:
        return np.empty((0, 2), int)
    thumbnails = thumbnails[textured]
    views = _in_parts(_views, thumbnails)
    asked = _candidates(_in_parts(_descriptors, views), np.random.default_rng(0))
    oriented = _orientations(views, asked)
    return textured[_same_detail(thumbnails, oriented)]


def _clusters(pairs: np.ndarray, n: int) -> np.ndarray:
    """The number (n,) of each row's component of the graph with the edges `pairs` (m, 2)."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers


def _in_parts(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """`function` over parts of an array's rows, at no time with two copies of the result."""
    parts = map(function, _chunks(array, _ROWS))
    first = next(parts)
    whole = np.empty((len(array), *first.shape[1:]), first.dtype)
    whole[: len(first)] = first
    for number, part in enumerate(parts, start=1):
        whole[number * _ROWS : number * _ROWS + len(part)] = part
    return whole


def _chunks(array: np.ndarray, length: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), length):
        yield array[start : start + length]


# Start and length of what a view sees of a side: all, the first, middle and last 90 %, and what
# two crops in a row leave.
PARTS = [
    (0.0, 1.0),
    (0.0, CROP),
    ((1 - CROP) / 2, CROP),
    (1 - CROP, CROP),
    ((1 - CROP**2) / 2, CROP**2),
]
# (row part, column part, saturated).
VIEWS = [
    (row, column, saturated)
    for saturated in (False, True)
    for row, column in [(0, 0), *product((1, 2, 3), repeat=2), (4, 4)]
]


def _resampling() -> np.ndarray:
    """DCT bases (5, FINE, SIDE) of the parts of a side in PARTS, from orthonormal cosines."""
    frequency = np.arange(FINE)[:, None]
    position = (np.arange(SIDE) + 0.5) / SIDE
    bases = []
    for start, length in PARTS:
        inside = (position - start) / length
        # Pixels cut by the crop's edge count with the share that lies within.
        share = np.clip(
            np.minimum(position + 0.5 / SIDE, start + length)
            - np.maximum(position - 0.5 / SIDE, start),
            0,
            None,
        )
        bases.append(np.cos(np.pi * frequency * inside) * share / length)
    scale = np.where(frequency == 0, 1, np.sqrt(2))
    return (np.stack(bases) * scale).astype(np.float32)


def _views(thumbnails: np.ndarray) -> np.ndarray:
    """Signed DCT coefficients (n, len(VIEWS), FINE, FINE) float32 of every view, DC left zero."""
    bases = _resampling().reshape(-1, SIDE)
    out = np.empty((len(thumbnails), len(VIEWS), FINE, FINE), np.float32)
    for saturated in (False, True):
        grey = thumbnails.astype(np.float32)
        if saturated:
            grey = np.clip(grey, BLACK, WHITE)
        blocks = (bases @ grey @ bases.T).reshape(-1, len(PARTS), FINE, len(PARTS), FINE)
        for view, (row, column, tone) in enumerate(VIEWS):
            if tone == saturated:
                out[:, view] = blocks[:, row, :, column]
    out[..., 0, 0] = 0
    return out


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-6)


def _descriptors(views: np.ndarray) -> np.ndarray:
    """Magnitudes that no orientation changes, unit length, from signed coefficients (..., F, F)."""
    rows, columns = np.triu_indices(COARSE)
    kept = (rows + columns > 0) & (rows + columns < COARSE + 2)
    rows, columns = rows[kept], columns[kept]
    size = np.abs(views)
    one, other = size[..., rows, columns], size[..., columns, rows]
    # The sum and the difference of a mirrored pair keep the distances that the pair has.
    both = (one + other) / np.sqrt(2)
    apart = (np.abs(one - other) / np.sqrt(2))[..., rows != columns]
    return _unit(np.concatenate([both, apart], axis=-1))


def _candidates(descriptors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (one, other, view), (m, 3) int: for each picture at most MOST_ASKED others like it.

    `descriptors` is (n, views, d), unit length; view 0 is the whole picture, and `view` that of
    `one` which is most like the whole of `other`.
    """
    n, views, _ = descriptors.shape
    flat = descriptors.reshape(n * views, -1)
    best = np.empty((0, 3), np.int64)
    # A core takes a leaf; products this small gain nothing from sharing them.
    with threadpool_limits(limits=1, user_api="blas"):
        for _ in range(TREES):
            alike = ahead(partial(_alike, flat, views), _leaves(flat, views, rng), 2 * WORKERS)
            best = _best(np.concatenate([best, *alike]), n)
    one, other, _ = best.T
    view = np.empty(len(best), np.int64)
    for start in range(0, len(best), _ROWS):
        part = slice(start, start + _ROWS)
        whole = descriptors[other[part], 0, :, None]
        view[part] = (descriptors[one[part]] @ whole)[..., 0].argmax(axis=1)
    return np.stack([one, other, view], axis=1)


def _best(found: np.ndarray, n: int) -> np.ndarray:
    """The highest code of each pair, and of these the MOST_ASKED highest of each picture."""
    # Pair and code in one integer: sorting those is many times faster than sorting rows.
    base = _STEPS + 2
    packed = np.sort((found[:, 0] * n + found[:, 1]) * base + found[:, 2])
    pair, code = np.divmod(packed, base)
    last = np.diff(pair, append=-1) != 0
    one, other = np.divmod(pair[last], n)
    found = np.stack([one, other, code[last]], axis=1)
    return found[_leading(one, -code[last], MOST_ASKED)]


def _leading(group: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """The places of the first `most` of every group, by `order`, groups in ascending order."""
    places = np.lexsort((order, group))
    sorted_groups = group[places]
    rank = np.arange(len(group)) - np.searchsorted(sorted_groups, sorted_groups)
    return places[rank < most]


def _leaves(
    flat: np.ndarray, views: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One random projection tree: (whole pictures, rows of all views) that end in each leaf."""
    # One direction a level for all its nodes: the projections are then one product, and the tree
    # moves numbers about instead of vectors.
    leaves = math.ceil(len(flat) / views / LEAF)
    depth = math.ceil(math.log2(leaves))
    directions = rng.standard_normal((flat.shape[1], depth), dtype=np.float32)
    along = np.ascontiguousarray((flat @ directions).T)
    pending = [(leaves, 0, np.arange(0, len(flat), views), np.arange(len(flat)))]
    while pending:
        leaves, level, members, rows = pending.pop()
        if leaves == 1:
            yield np.sort(members), rows
            continue
        here = along[level]
        order = members[np.argsort(here[members], kind="stable")]
        # Leaves of equal size, also where their number is no power of two.
        cut = len(order) * (leaves // 2) // leaves
        left = here[rows] <= here[order[cut - 1]]
        pending += [
            (leaves - leaves // 2, level + 1, order[cut:], rows[~left]),
            (leaves // 2, level + 1, order[:cut], rows[left]),
        ]


def _alike(flat: np.ndarray, views: int, leaf: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Rows (one, other, similarity in _STEPS) of a leaf's most similar pairs, MOST_A_LEAF of a
    picture; the similarity is the highest over the views that are in the leaf."""
    members, rows = leaf
    against, other, found = flat[members].T, members // views, []
    for part in _chunks(rows, _PRODUCT):  # in ascending order, as `members` are
        similar = flat[part] @ against
        one, start = np.unique(part // views, return_index=True)
        similar = np.maximum.reduceat(similar, start, axis=0)
        # Nearly all pictures are unlike: what is left to rank are a few.
        row, column = np.nonzero(similar >= CANDIDATE)
        codes = (similar[row, column] * _STEPS).astype(np.int64)
        apart = one[row] != other[column]
        row, column, codes = row[apart], column[apart], codes[apart]
        kept = _leading(row, -codes, MOST_A_LEAF)
        found.append(np.stack([one[row[kept]], other[column[kept]], codes[kept]], axis=1))
    return np.concatenate(found)


def _orientations(views: np.ndarray, asked: np.ndarray) -> pd.DataFrame:
    """The pairs that correlate in some orientation; adds it, at most MOST_COMPARED a picture."""
    one, other, view = asked.T
    scores = np.zeros((len(asked), 8), np.float32)
    for start in range(0, len(asked), _ROWS):
        part = slice(start, start + _ROWS)
        left = _unit(views[one[part], view[part]].reshape(len(one[part]), -1))
        right = _unit(views[other[part], 0].reshape(len(one[part]), -1)).reshape(-1, FINE, FINE)
        for orientation in range(8):
            turned = _oriented(right, orientation, signs=True).reshape(left.shape)
            scores[part, orientation] = np.einsum("nd,nd->n", left, turned)
    pairs = pd.DataFrame({"one": one, "view": view, "other": other})
    pairs["orientation"] = scores.argmax(axis=1)
    pairs["score"] = scores.max(axis=1)
    pairs = pairs[pairs["score"] >= ORIENTED]
    # A pair found from both ends is compared once, from the end where it fits better.
    pairs["low"], pairs["high"] = np.sort(pairs[["one", "other"]].to_numpy(), axis=1).T
    pairs = pairs.sort_values(["score", "low", "high", "view"], ascending=[False, True, True, True])
    pairs = pairs.drop_duplicates(["low", "high"])
    pairs["rank"] = pairs.groupby("one").cumcount()
    return pairs[pairs["rank"] < MOST_COMPARED]


def _same_detail(thumbnails: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """The pairs (m, 2) that share detail, but for those that others already connect."""
    found = np.empty((0, 2), np.int64)
    for _, best in pairs.groupby("rank"):  # each picture's best pair first
        cluster = _clusters(found, len(thumbnails))
        best = best[cluster[best["one"]] != cluster[best["other"]]]
        table = best[["one", "view", "other", "orientation"]].to_numpy()
        share = list(ahead(partial(_detail_shared, thumbnails), _chunks(table, 64)))
        if share:
            found = np.concatenate([found, table[np.concatenate(share)][:, [0, 2]]])
    return found


def _detail_shared(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which of the rows (one, view, other, orientation) share detail: bool (m,)."""
    share = np.empty(len(pairs), bool)
    for place, (one, view, other, orientation) in enumerate(pairs.tolist()):
        turned = _oriented(thumbnails[other], orientation, signs=False).astype(np.float32)
        seen = _seen(thumbnails[one], view)
        share[place] = _detail_correlation(seen, np.ascontiguousarray(turned)) >= DETAIL
    return share


def _oriented(array: np.ndarray, orientation: int, signs: bool) -> np.ndarray:
    """The array (..., m, m) in one of eight orientations; `signs` where it holds coefficients."""
    if orientation & 4:
        array = np.swapaxes(array, -1, -2)
    if signs:
        odd = np.where(np.arange(array.shape[-1]) % 2, -1, 1).astype(array.dtype)
        array = array * odd[:, None] if orientation & 2 else array
        return array * odd if orientation & 1 else array
    array = array[..., ::-1, :] if orientation & 2 else array
    return array[..., ::-1] if orientation & 1 else array


def _detail(grey: np.ndarray) -> np.ndarray:
    """What is left of a grey float32 image without its broad shading, in units of local spread."""
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.8)
    fine = smooth - cv2.GaussianBlur(smooth, (0, 0), 3)
    spread = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 4))
    return fine / (spread + 3)


def _detail_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The highest correlation (-1 to 1) of local detail over shifts of up to SHIFT pixels."""
    inner = np.ascontiguousarray(_detail(one)[SHIFT:-SHIFT, SHIFT:-SHIFT])
    return float(cv2.matchTemplate(_detail(other), inner, cv2.TM_CCOEFF_NORMED).max())


def _seen(thumbnail: np.ndarray, view: int) -> np.ndarray:
    """A view of a thumbnail as a picture of its own, float32 (SIDE, SIDE)."""
    row, column, saturated = VIEWS[view]
    grey = thumbnail.astype(np.float32)
    if saturated:
        grey = np.clip(grey, BLACK, WHITE)
    (top, size), (left, _) = PARTS[row], PARTS[column]
    if size == 1:
        return grey
    # Pixel centres: the crop's first pixel centre lies half a (smaller) pixel inside its edge.
    centre = (size - 1) / 2
    warp = np.array([[size, 0, left * SIDE + centre], [0, size, top * SIDE + centre]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grey, warp, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
