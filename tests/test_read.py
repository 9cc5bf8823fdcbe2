"""read_image: right on every odd file, one sentence on every broken one."""

from __future__ import annotations

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from leukoscope.errors import UnreadableError
from leukoscope.imaging.read import IMAGE_SUFFIXES, read_bytes_image, read_image


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth colour gradient, so that lossy formats stay close: 40 high, 60 wide."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG", "JPEG2000"])
def test_formats(kind: str, picture: np.ndarray, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    file = tmp_path / "named-wrongly.jpg"  # the content tells the format
    file.write_bytes(encoded(Image.fromarray(picture), kind, **options))
    image = read_image(file)
    assert image.shape == picture.shape and image.dtype == np.uint8
    assert image.flags.c_contiguous and image.flags.writeable
    tolerance = {"JPEG": 30, "GIF": 40, "JPEG2000": 1}.get(kind, 0)
    assert np.abs(image.astype(int) - picture).max() <= tolerance


def test_jpeg_agrees_with_opencv(pbc: Path) -> None:
    for file in sorted(pbc.rglob("*.jpg"))[::200]:
        reference = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(read_image(file), reference)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "PA", "CMYK", "I;16"])
def test_modes(mode: str, picture: np.ndarray) -> None:
    source = Image.fromarray(picture)
    if mode == "I;16":
        source = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
        expected = source
    else:
        source = source.convert("L").convert("LA") if mode == "LA" else source.convert(mode)
        expected = source.convert("RGB")
    image = read_bytes_image(encoded(source, "TIFF" if mode in {"CMYK", "PA"} else "PNG"))
    if mode == "I;16":
        assert np.array_equal(image, np.asarray(expected)[:, :, None].repeat(3, 2) // 257)
    else:
        assert np.array_equal(image, np.asarray(expected))


def test_cmyk_jpeg_keeps_its_colours(picture: np.ndarray) -> None:
    data = encoded(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(read_bytes_image(data).astype(int) - picture).max() <= 30


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(mode: str) -> None:
    if mode == "P":
        data = encoded(Image.new("P", (3, 2), 0), "PNG", transparency=0)
    else:
        data = encoded(Image.new(mode, (3, 2), 0), "PNG")
    assert (read_bytes_image(data) == 255).all()


def test_half_transparent_is_mixed_with_white() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (0, 100, 200, 128)), "PNG")
    assert np.abs(read_bytes_image(data)[0, 0].astype(int) - [127, 177, 227]).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit(suffix: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    if channels == 4:
        values[..., 3] = 65535
    expected = np.round(values / 257).astype(np.uint8)[..., :3]
    done, data = cv2.imencode(suffix, values)  # OpenCV stores its BGR as RGB
    assert done
    expected = expected[..., ::-1] if channels > 1 else expected.repeat(3, 2)
    assert np.array_equal(read_bytes_image(data.tobytes()), expected)


def test_12_bit_in_16_is_taken_by_the_stored_range() -> None:
    data = cv2.imencode(".tiff", np.full((4, 4), 4095, np.uint16))[1].tobytes()
    assert (read_bytes_image(data) == 16).all()


def test_float_pixels_are_refused() -> None:
    with pytest.raises(UnreadableError, match="range the file does not state"):
        read_bytes_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation(orientation: int, kind: str, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB"))
    assert np.array_equal(read_bytes_image(data), expected)
    assert expected.shape[:2] == ((60, 40) if orientation > 4 else (40, 60))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_colour(orientation: int, picture: np.ndarray) -> None:
    buffer = io.BytesIO()
    tag = (0x0112, "H", 1, orientation, True)
    tifffile.imwrite(buffer, picture.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    exif = Image.Exif()
    exif[0x0112] = orientation
    shallow = encoded(Image.fromarray(picture), "TIFF", exif=exif)
    deep = read_bytes_image(buffer.getvalue()).astype(int)
    assert np.abs(deep - read_bytes_image(shallow)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_frame_of_several(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
    assert (read_bytes_image(data) == [255, 0, 0]).all(axis=2).mean() == 1


def test_one_pixel() -> None:
    assert read_bytes_image(encoded(Image.new("L", (1, 1), 7), "PNG")).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("name", ["лейкоцит 白血球 é.png", "n" * 251 + ".png"])
def test_odd_names(name: str, tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / name)
    assert np.array_equal(read_image(tmp_path / name), picture)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels, with almost no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def test_size_is_refused_from_the_header() -> None:
    with pytest.raises(UnreadableError, match=r"20000 x 20000 = 400,000,000 pixels.*100,000,000"):
        read_bytes_image(bomb(20000, 20000))
    with pytest.raises(UnreadableError, match=r"more than the 11 allowed"):
        read_bytes_image(encoded(Image.new("RGB", (4, 3)), "PNG"), max_pixels=11)
    assert read_bytes_image(encoded(Image.new("RGB", (4, 3)), "PNG"), max_pixels=12).any() == 0


def test_max_pixels_rules_not_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert read_bytes_image(encoded(Image.new("RGB", (4, 3)), "PNG")).shape == (3, 4, 3)
    assert Image.MAX_IMAGE_PIXELS == 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(
    kind: str, share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    file = tmp_path / "cut.img"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableError) as caught:
        read_image(file)
    assert "cut.img" in caught.value.message and caught.value.fix
    assert caught.value.field == str(file)
    if kind in {"JPEG", "PNG"} and share > 0.5:
        assert f"the {kind} file ends before the image does" in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_truncated_progressive_and_16_bit(capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    progressive = encoded(Image.fromarray(noise), "JPEG", progressive=True)
    deep = [cv2.imencode(s, noise.astype(np.uint16) * 200)[1].tobytes() for s in (".png", ".tiff")]
    for data in (progressive, *deep):
        with pytest.raises(UnreadableError):
            read_bytes_image(data[: len(data) * 2 // 3])
    assert capfd.readouterr() == ("", "")


def test_thumbnail_end_marker_does_not_hide_truncation(picture: np.ndarray) -> None:
    """An embedded thumbnail has an end marker of its own."""
    data = encoded(
        Image.fromarray(picture), "JPEG", comment=encoded(Image.new("L", (8, 8)), "JPEG")
    )
    assert read_bytes_image(data).shape == picture.shape
    with pytest.raises(UnreadableError, match="ends before the image does"):
        read_bytes_image(data[:-200])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_never_crashes_or_prints(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"]))
    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in {"JPEG", "PNG", "TIFF", "WEBP"} else {}
    damaged = bytearray(encoded(Image.fromarray(noise), kind, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = read_bytes_image(bytes(damaged), max_pixels=10_000)
    except UnreadableError as problem:
        assert problem.message and "\n" not in problem.message
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_damage_inside_a_jpeg_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(noise), "JPEG"))
    data[2000:2010] = b"\xff\xd0" * 5
    read_bytes_image(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"cells, many cells", "its content is text"),
        (b"\0\1\2\3" * 9, "its content is no image"),
        (b"\xff\xd8\xff\xe0", "the JPEG file's header is damaged or cut off"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "its content is text"),
    ],
)
def test_no_image(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "cell.jpg").write_bytes(content)
    with pytest.raises(UnreadableError, match=f"Can't read cell.jpg: {why}"):
        read_image(tmp_path / "cell.jpg")


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, why in [
        ("", "it is a folder"),
        ("absent.jpg", "there is no such file"),
        ("dangling.jpg", "the link points to nothing"),
        ("circle.jpg", "too many levels of symbolic links"),
        ("pipe.jpg", "it is no regular file"),
        ("x" * 300 + ".jpg", "file name too long"),
        ("null\0.jpg", "embedded null byte"),
    ]:
        with pytest.raises(UnreadableError, match=why):
            read_image(tmp_path / name)
    with (tmp_path / "huge.jpg").open("wb") as huge:
        huge.truncate(10**12)  # sparse: takes no room
    with pytest.raises(UnreadableError, match="1,000,000,000,000 bytes, more than"):
        read_image(tmp_path / "huge.jpg")


def test_threads_share_nothing(picture: np.ndarray) -> None:
    kinds = ["JPEG", "PNG", "TIFF", "GIF"] * 10
    data = [encoded(Image.fromarray(picture), kind) for kind in kinds]
    with ThreadPoolExecutor(4) as pool:
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                pool.map(read_bytes_image, data), map(read_bytes_image, data), strict=True
            )
        )


def test_suffixes_are_lower_case() -> None:
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in IMAGE_SUFFIXES)
