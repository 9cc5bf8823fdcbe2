"""Any image file as 8-bit RGB: what every other part calls to get at pixels.

The format is told by the content, never by the suffix. The size is checked from the header before
anything is decoded. What can't be read raises UnreadableError with the reason in one sentence.

Conventions, each stated rather than guessed from the pixels:

- 16 bits a channel are scaled by the stored range (value / 257, rounded). A 12-bit camera image
  stored unscaled in 16 bits therefore comes out dark (4095 becomes 16): rescale such files by
  their true range first; the file itself doesn't say what that range is.
- Transparency is laid on white, because white is what a bright-field smear shows where there is
  nothing; on black an empty margin would look like one huge nucleus.
- Of animations and multi-page files the first frame counts.
- EXIF orientation is applied; embedded colour profiles are not.
- 32-bit and floating-point pixels have no stated range and are refused.

Plain JPEG (8-bit grey or YCbCr without EXIF data) is decoded by simplejpeg where that is installed:
the same libjpeg-turbo, hence the same pixels, in half of Pillow's time. Whatever it doubts goes to
Pillow, which judges.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, UnidentifiedImageError

from leukoscope.errors import UnreadableError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
)
# Only formats that hold pixels and nothing else: Pillow would hand PostScript to an interpreter.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
}
_ORIENTATION = 0x0112  # EXIF
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF
_AGAIN = "Fetch or export the file again."
SCANS = 500
"""Passes over a JPEG's pixels; progressive files have about ten, and each costs as much as one."""
# Its remarks on damaged files; what is wrong with a file is ours to say.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Python's warning filters and Pillow's size limit belong to the whole process: one at a time.
_lock = threading.Lock()


def read_image(path: Path, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """The image file as uint8 RGB, shape (height, width, 3).

    Raises UnreadableError naming the file and the reason; `max_pixels` is the largest
    width x height that is decoded.
    """
    path = Path(path)
    try:
        data = read_bytes(path, max_pixels=max_pixels)
        return read_bytes_image(data, max_pixels=max_pixels)
    except UnreadableError as problem:
        raise UnreadableError(
            f"Can't read {path.name}: {problem.message}", fix=problem.fix, field=str(path)
        ) from None


def read_bytes(path: Path, *, max_pixels: int = 100_000_000) -> bytes:
    """The bytes of a file that may be an image; UnreadableError holds the reason alone."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableError("it is a folder, not a file", fix="Name the files inside it.")
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("it is no regular file", fix="Give a plain image file.")
        # Uncompressed 16-bit RGBA takes 8 bytes a pixel; the rest is room for metadata.
        limit = 8 * max_pixels + 2**24
        if status.st_size > limit:
            raise UnreadableError(
                f"it has {status.st_size:,} bytes, more than the {limit:,} allowed",
                fix="Cut it into smaller images.",
            )
        return path.read_bytes()
    except FileNotFoundError:
        why = "the link points to nothing" if path.is_symlink() else "there is no such file"
        raise UnreadableError(why, fix="Check the path.") from None
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or str(problem)
        raise UnreadableError(why[0].lower() + why[1:], fix="Check the path.") from None


def read_bytes_image(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """A whole image file's bytes as uint8 RGB, shape (height, width, 3).

    Always at its full size, though libjpeg-turbo could shrink as it decodes: training saw whole
    images, and that changes answers. Raises UnreadableError whose message is the reason alone (`the
    JPEG file ends before the image does`), without a file name.
    """
    if not data:
        raise UnreadableError("the file is empty", fix=_AGAIN)
    if data.startswith(b"\xff\xd8\xff") and (scans := data.count(b"\xff\xda")) > SCANS:
        raise UnreadableError(
            f"the JPEG file has {scans:,} scans, more than the {SCANS} allowed", fix=_AGAIN
        )
    plain = _plain_jpeg(data, max_pixels)
    if plain is not None:
        return plain
    with _open(data, max_pixels) as image:
        if image.width * image.height > max_pixels:
            raise UnreadableError(
                f"it has {image.width} x {image.height} = {image.width * image.height:,} pixels, "
                f"more than the {max_pixels:,} allowed",
                fix="Cut or shrink it first.",
            )
        name = image.format or "image"
        try:
            return _pixels(image, data)
        except (UnreadableError, MemoryError):
            raise
        except Exception as problem:  # noqa: BLE001 - decoders raise nearly anything
            raise UnreadableError(_reason(name, problem), fix=_AGAIN) from None


def png(pixels: np.ndarray) -> bytes:
    """uint8 RGB (H, W, 3) as a PNG, the same bytes for the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=3)
    return out.getvalue()


def _plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """A JPEG's pixels by the fast decoder, None where Pillow has to look."""
    if not data.startswith(b"\xff\xd8\xff") or b"Exif" in data:
        return None
    decoder = _fast_decoder()
    if decoder is None:
        return None
    try:
        height, width, colour, _ = decoder.decode_jpeg_header(data)
        if height * width > max_pixels or colour not in {"YCbCr", "Gray"}:
            return None
        # Strict: what libjpeg-turbo only warns of, such as an early end, is an error.
        return decoder.decode_jpeg(data, strict=True)
    except Exception:  # noqa: BLE001 - damaged or unusual: Pillow says what is wrong with it
        return None


@functools.cache
def _fast_decoder() -> ModuleType | None:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The header, parsed; nothing decoded."""
    try:
        with _quiet():
            # `max_pixels` is judged when the size is known, but of a GIF Pillow makes room for the
            # first frame already, which may be larger than the image: up to 4 billion pixels.
            limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = max_pixels if data.startswith(b"GIF8") else None
            try:
                return Image.open(io.BytesIO(data), formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except Image.DecompressionBombError:
        raise UnreadableError(
            f"its first frame has more than the {max_pixels:,} pixels allowed",
            fix="Cut or shrink it first.",
        ) from None
    except Exception as problem:  # noqa: BLE001 - decoders raise nearly anything
        name = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
        if name is None:
            kind = "text" if _is_text(data) else "no image"
            raise UnreadableError(
                f"its content is {kind}; allowed: {', '.join(FORMATS)}",
                fix="Give an image file, or export it in one of these formats.",
            ) from None
        if isinstance(problem, UnidentifiedImageError):
            raise UnreadableError(
                f"the {name} file's header is damaged or cut off", fix=_AGAIN
            ) from None
        raise UnreadableError(_reason(name, problem), fix=_AGAIN) from None


def _is_text(data: bytes) -> bool:
    head = data[:512]
    return b"\0" not in head and head.decode("utf-8", "ignore").encode() == head


def _reason(name: str, problem: Exception) -> str:
    text = str(problem).rstrip(".")
    if "truncat" in text.lower() or isinstance(problem, EOFError):
        return f"the {name} file ends before the image does"
    return f"the {name} file is damaged ({text or type(problem).__name__})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's remarks on odd metadata are no news to somebody who indexes 80,000 images."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """libtiff writes what it thinks of a damaged file to stderr, past Python."""
    try:
        usual = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)
        os.close(nowhere)


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """Decode: upright uint8 RGB."""
    deep = _deep_colour(image, data)
    # The three common formats warn about nothing while decoding and so decode in parallel.
    with contextlib.ExitStack() as quiet:
        if image.format not in {"JPEG", "PNG", "BMP"}:
            quiet.enter_context(_quiet())
        if image.format == "TIFF":
            quiet.enter_context(_silent())
        image.load()
    if deep:
        image.im = None  # type: ignore[assignment]  # found whole, and decoded anew
        rgb = _decode_deep(data)
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        rgb = np.repeat(_to_8_bit(np.asarray(image))[:, :, None], 3, axis=2)
    elif image.mode in {"I", "F"}:
        raise UnreadableError(
            "its pixels are 32-bit or signed numbers, whose range the file does not state; "
            "allowed: 8 or 16 bits unsigned",
            fix="Export it with 8 or 16 bits a channel.",
        )
    elif image.has_transparency_data:
        rgb = _on_white(image.convert("RGBA"))
    else:
        rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return _upright(rgb, _orientation(image))


def _deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether a pixel has several channels of 16 bits, which Pillow would cut to 8."""
    if image.format == "PNG":
        return data[24] == 16 and data[25] in {2, 4, 6}
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, kind = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
        # OpenCV turns some TIFFs and not others. Pillow turns all; its cut to 8 bits is off by one
        # grey level at most.
        upright = tags.get(_ORIENTATION, 1) == 1
        return upright and len(bits) >= 3 and set(bits) == {16} and set(kind) == {1}
    return False


def _decode_deep(data: bytes) -> np.ndarray:
    """Several 16-bit channels, decoded by OpenCV after Pillow has found the file whole."""
    import cv2

    with _lock:
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        finally:
            cv2.utils.logging.setLogLevel(level)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        raise ValueError("16-bit colour of an unknown kind")
    order = [2, 1, 0, 3][: stored.shape[2]]
    grey, stored = _to_8_bit(stored)[:, :, order], None
    image = Image.fromarray(np.ascontiguousarray(grey))
    return _on_white(image) if image.mode == "RGBA" else np.array(image)


def _to_8_bit(stored: np.ndarray) -> np.ndarray:
    grey = np.empty(stored.shape, np.uint8)
    for row in range(0, len(stored), 256):  # a copy of all of it in 32 bits would be gigabytes
        grey[row : row + 256] = (stored[row : row + 256].astype(np.uint32) + 128) // 257
    return grey


def _on_white(image: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return np.array(white.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; TIFF is already upright after Pillow's decoding."""
    if image.format == "TIFF" or not {"exif", "Raw profile type exif"} & set(image.info):
        return 1
    try:
        with _quiet():
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - the pixels are whole, only the metadata is not
        return 1


def _upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in {5, 6, 7, 8}:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        rgb = rgb[::-1]
    if orientation in {2, 3, 6, 7}:
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)
