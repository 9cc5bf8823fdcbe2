"""Files that mean harm: made here, byte by byte, none larger than a few hundred kilobytes.

`images()` are single files for the doors that take images, `archives()` zips for the service.
Each name says what is wrong with it; GOOD are those that a reader may well accept.
"""

from __future__ import annotations

import functools
import gzip
import io
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

PNG, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd9"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]><svg>&j;</svg>"
)
XXE = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>'


class Evil:
    """Pickled, it would make a file when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("open('pickle-was-here', 'w').close()",)


PICKLE = pickle.dumps(Evil())


def encoded(kind: str, size: tuple[int, int] = (48, 48), **more: object) -> bytes:
    """A picture of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, kind, **more)  # type: ignore[arg-type]
    return out.getvalue()


# --- PNG ------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes, length: int | None = None, crc: int | None = None) -> bytes:
    """A PNG's chunk, which may lie about its length and its checksum."""
    size = len(body) if length is None else length
    check = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", size) + kind + body + struct.pack(">I", check)


def png(*middle: bytes, width: int = 8, height: int = 8, depth: int = 8, colour: int = 2,
        data: bytes | None = None, interlaced: int = 0) -> bytes:  # fmt: skip
    """A PNG of one colour with chunks of one's own before its data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = zlib.compress(b"\0" * (25 * 8)) if data is None else data
    parts = (chunk(b"IHDR", header), *middle, chunk(b"IDAT", body), chunk(b"IEND", b""))
    return PNG + b"".join(parts)


def _pngs() -> dict[str, bytes]:
    zeros = zlib.compress(b"\0" * 5_000_000, 9)
    whole = png()
    return {
        "bomb": png(width=20_000, height=20_000),
        "bomb-wide": png(width=2**31 - 1, height=1),
        "bomb-tall": png(width=1, height=2**31 - 1),
        "bomb-max": png(width=2**31 - 1, height=2**31 - 1),
        "size-overflows": png(width=2**32 - 1, height=2**32 - 1),
        "no-width": png(width=0),
        "no-height": png(height=0),
        "depth-3": png(depth=3),
        "depth-255": png(depth=255),
        "colour-7": png(colour=7),
        "interlace-9": png(interlaced=9),
        "no-palette": png(colour=3, data=zlib.compress(b"\0" * 72)),
        "palette-of-odd-length": png(chunk(b"PLTE", b"1234"), colour=3, data=zlib.compress(b"\0")),
        "header-short": PNG + chunk(b"IHDR", b"\0\0\0\x08"),
        "header-twice": png(chunk(b"IHDR", struct.pack(">IIBBBBB", 9999, 9999, 8, 2, 0, 0, 0))),
        "header-crc": PNG + chunk(b"IHDR", b"\0" * 13, crc=1) + whole[33:],
        "no-header": PNG + chunk(b"IDAT", zlib.compress(b"\0" * 200)) + chunk(b"IEND", b""),
        "no-data": PNG + whole[8:33] + chunk(b"IEND", b""),
        "only-magic": PNG,
        "end-first": PNG + chunk(b"IEND", b"") + whole[8:],
        "data-no-zlib": png(data=b"no zlib at all"),
        "data-empty": png(data=b""),
        "data-short": png(data=zlib.compress(b"\0" * 30)),
        "data-bad-filter": png(data=zlib.compress(b"\x09" * 200)),
        "data-swells": png(data=zeros),
        "chunk-length-max": PNG + whole[8:33] + chunk(b"tEXt", b"x", length=2**32 - 1),
        "chunk-length-negative": PNG + whole[8:33] + chunk(b"IDAT", b"x", length=2**31),
        "chunk-name-odd": png(chunk(b"\0\xff\x1b[", b"x")),
        "text-bomb": png(chunk(b"zTXt", b"k\0\0" + zeros)),
        "international-text-bomb": png(chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)),
        "profile-bomb": png(chunk(b"iCCP", b"k\0\0" + zeros)),
        "many-chunks": png(*[chunk(b"teSt", b"")] * 10_000),
        "animation-of-millions": png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        "frame-outside": png(
            chunk(b"acTL", struct.pack(">II", 2, 0)),
            chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9**9, 9**9, 7, 7, 0, 0, 0, 0)),
        ),
        "exif-of-nothing": png(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
        "crc": whole[:-5] + b"\0" + whole[-4:],
    }  # fmt: skip


# --- JPEG -----------------------------------------------------------------------------------------


def segment(marker: int, body: bytes, length: int | None = None) -> bytes:
    """A JPEG's segment."""
    size = len(body) + 2 if length is None else length
    return struct.pack(">BBH", 0xFF, marker, size) + body


def _jpegs() -> dict[str, bytes]:
    whole = encoded("JPEG")
    progressive = encoded("JPEG", progressive=True)
    frame = whole.index(b"\xff\xc0")
    scan = whole.index(b"\xff\xda")
    last = progressive.rindex(b"\xff\xda")

    def sized(height: int, width: int, data: bytes = whole, place: int = frame) -> bytes:
        return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]

    def framed(marker: int) -> bytes:
        return whole[:frame] + bytes([0xFF, marker]) + whole[frame + 2 :]

    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    empty = progressive[last:-2]
    return {
        "bomb": sized(65_500, 65_500),
        "bomb-of-scans": progressive[:-2] + empty[:14] * 20_000 + JPEG_END,
        "no-height": sized(0, 48),
        "no-width": sized(48, 0),
        "only-magic": b"\xff\xd8\xff",
        "only-ends": b"\xff\xd8" + JPEG_END,
        "no-scan": whole[:scan] + JPEG_END,
        "scan-first": b"\xff\xd8" + whole[scan:],
        "no-tables": whole[:2] + whole[frame:],
        "segment-too-long": whole[:2] + segment(0xE1, b"Exif", length=0xFFFF),
        "segment-too-short": whole[:2] + segment(0xE0, b"", length=0) + whole[2:],
        "frame-twice": whole[:scan] + whole[frame:],
        "lossless": framed(0xC3),
        "arithmetic": framed(0xC9),
        "hierarchical": framed(0xC5),
        "12-bits": whole[: frame + 4] + b"\x0c" + whole[frame + 5 :],
        "255-components": whole[: frame + 9] + b"\xff" + whole[frame + 10 :],
        "no-components": whole[: frame + 9] + b"\0" + whole[frame + 10 :],
        "sampling-15": whole[: frame + 11] + b"\xff" + whole[frame + 12 :],
        "table-of-ff": whole[:2] + segment(0xC4, b"\0" + b"\xff" * 255) + whole[2:],
        "noise-in-scan": whole[: scan + 20] + bytes(range(1, 255)) * 9 + JPEG_END,
        "cut": whole[: len(whole) // 2],
        "exif-loop": whole[:2] + segment(0xE1, loop) + whole[2:],
        "exif-of-noise": whole[:2] + segment(0xE1, b"Exif\0\0" + b"\xff" * 999) + whole[2:],
        "profile-in-255-parts": whole[:2]
        + segment(0xE2, b"ICC_PROFILE\0\x01\xff" + b"\0" * 9) * 255 + whole[2:],
        "many-comments": whole[:2] + segment(0xFE, b"x") * 20_000 + whole[2:],
        "multi-picture": whole[:2] + segment(0xE2, b"MPF\0II*\0" + b"\xff" * 90) + whole[2:],
    }  # fmt: skip


# --- TIFF -----------------------------------------------------------------------------------------


def tiff(after: int = 0, data: bytes = b"\x80" * 192, **changed: tuple[int, int, int]) -> bytes:
    """A TIFF of 8 x 8 pixels; `changed` are tags as (type, count, value), `after` the next IFD."""
    tags: dict[int, tuple[int, int, int]] = {
        256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 0), 277: (3, 1, 1), 278: (4, 1, 8), 279: (4, 1, len(data)),
    }  # fmt: skip
    tags |= {int(name[1:]): value for name, value in changed.items()}
    start = 8 + 2 + 12 * len(tags) + 4
    if tags.get(273) == (4, 1, 0):
        tags[273] = (4, 1, start)
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", after) + data


def _tiffs() -> dict[str, bytes]:
    return {
        "bomb": tiff(t256=(4, 1, 2**31 - 1), t257=(4, 1, 2**31 - 1)),
        "size-overflows": tiff(t256=(4, 1, 2**32 - 1), t257=(4, 1, 2**32 - 1)),
        "no-width": tiff(t256=(4, 1, 0)),
        "no-height": tiff(t257=(4, 1, 0)),
        "loop": tiff(after=8),
        "directory-beyond-the-end": b"II*\0\xff\xff\xff\x7f",
        "directory-of-65535": b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 99,
        "directory-empty": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        "strips-outside": tiff(t273=(4, 1, 2**31), t279=(4, 1, 2**31)),
        "strips-of-millions": tiff(t273=(4, 2**30, 8), t279=(4, 2**30, 8)),
        "rows-none": tiff(t278=(4, 1, 0)),
        "tiles-huge": tiff(t322=(4, 1, 2**30), t323=(4, 1, 2**30), t324=(4, 1, 8), t325=(4, 1, 9)),
        "tiles-tiny": tiff(t322=(4, 1, 1), t323=(4, 1, 1), t324=(4, 64, 8), t325=(4, 64, 8)),
        "bits-64": tiff(t258=(3, 1, 64)),
        "samples-60000": tiff(t277=(3, 1, 60_000)),
        "compression-unknown": tiff(t259=(3, 1, 64_999)),
        "compression-jpeg": tiff(t259=(3, 1, 7)),
        "compression-lzw": tiff(t259=(3, 1, 5), data=b"\xff" * 999),
        "compression-fax": tiff(t259=(3, 1, 4), t258=(3, 1, 1), data=b"\x55" * 999),
        "swells": tiff(t259=(3, 1, 8), data=zlib.compress(b"\0" * 5_000_000, 9)),
        "description-of-gigabytes": tiff(t270=(2, 2**31 - 1, 8)),
        "sub-directory-loop": tiff(t330=(4, 1, 8), t34665=(4, 1, 8)),
        "type-unknown": tiff(t256=(99, 1, 8)),
        "big": b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**62),
        "cut": encoded("TIFF")[:200],
        "only-magic": b"MM\0*",
    }  # fmt: skip


# --- the other formats ----------------------------------------------------------------------------


def bmp(width: int = 8, height: int = 8, bits: int = 24, compression: int = 0, header: int = 40,
        offset: int = 54, data: bytes = b"\0" * 192, colours: int = 0) -> bytes:  # fmt: skip
    """A BMP that may lie in every field."""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0,
                       colours, 0)  # fmt: skip
    return struct.pack("<2sIHHI", b"BM", 54 + len(data), 0, 0, offset) + info + data


def gif(width: int, height: int, frame: tuple[int, int, int, int], data: bytes) -> bytes:
    """A GIF of one frame (left, top, width, height)."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02" + data


def jp2(width: int, height: int, real: tuple[int, int], tile: tuple[int, int]) -> bytes:
    """A JPEG 2000 file whose box says width x height and whose codestream says something else."""
    whole = encoded("JPEG2000")
    box = whole.index(b"ihdr") + 4
    whole = whole[:box] + struct.pack(">II", height, width) + whole[box + 8 :]
    size = whole.index(b"\xff\x51") + 6
    sizes = struct.pack(">IIIIIIII", *real, 0, 0, *tile, 0, 0)
    return whole[:size] + sizes + whole[size + 32 :]


def webp(width: int, height: int) -> bytes:
    """A WebP whose canvas is said to be that large."""
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas + encoded("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _others() -> dict[str, bytes]:
    lzw = b"\x02\x4c\x01\0;"
    return {
        "bomb.bmp": bmp(2**31 - 1, 2**31 - 1),
        "upside-down-bomb.bmp": bmp(60_000, -(2**31) + 1),
        "no-width.bmp": bmp(0, 8),
        "no-height.bmp": bmp(8, 0),
        "negative-width.bmp": bmp(-8, 8),
        "bits-255.bmp": bmp(bits=255),
        "palette-of-millions.bmp": bmp(bits=8, colours=2**31),
        "offset-outside.bmp": bmp(offset=2**31),
        "header-unknown.bmp": bmp(header=7),
        "run-lengths-overrun.bmp": bmp(bits=8, compression=1, data=b"\xff\x01" * 99),
        "compression-unknown.bmp": bmp(compression=99),
        "only-magic.bmp": b"BM",
        "bomb.gif": gif(65_535, 65_535, (0, 0, 65_535, 65_535), lzw),
        "frame-outside.gif": gif(8, 8, (60_000, 60_000, 5_000, 5_000), lzw),
        "no-size.gif": gif(0, 0, (0, 0, 0, 0), lzw),
        "no-frames.gif": b"GIF89a\x08\0\x08\0\0\0\0;",
        "codes-beyond.gif": gif(8, 8, (0, 0, 8, 8), b"\xff" + b"\xff" * 255 + b"\0;"),
        "endless-extensions.gif": b"GIF89a\x08\0\x08\0\0\0\0" + b"!\xfe\x01x\0" * 20_000,
        "only-magic.gif": b"GIF89a",
        "bomb.webp": webp(16_383, 16_383),
        "canvas-beyond.webp": webp(2**24, 2**24),
        "length-lies.webp": b"RIFF\xff\xff\xff\xff" + encoded("WEBP")[8:],
        "cut.webp": encoded("WEBP")[:60],
        "only-magic.webp": b"RIFF\0\0\0\0WEBP",
        "bomb.ppm": b"P6 99999999 99999999 255\n\0\0\0",
        "negative.ppm": b"P6 -8 8 255\n" + b"\0" * 192,
        "no-size.ppm": b"P6 0 0 255\n",
        "exponent.ppm": b"P6 1e9 1e9 255\n",
        "no-range.ppm": b"P6 8 8 0\n" + b"\0" * 192,
        "range-beyond.ppm": b"P6 8 8 99999\n" + b"\0" * 192,
        "digits.ppm": b"P6 " + b"9" * 9_999 + b" 8 255\n",
        "comment-without-end.ppm": b"P6 #" + b"x" * 99_999,
        "letters.ppm": b"P3 8 8 255\n" + b"a b c " * 64,
        "bomb.jp2": jp2(60_000, 60_000, (60_000, 60_000), (60_000, 60_000)),
        "two-sizes.jp2": jp2(48, 48, (30_000, 30_000), (30_000, 30_000)),
        "tiles-of-one-pixel.jp2": jp2(48, 48, (48, 48), (1, 1)),
        "tiles-of-none.jp2": jp2(48, 48, (48, 48), (0, 0)),
        "no-size.jp2": jp2(0, 0, (0, 0), (48, 48)),
        "cut.jp2": encoded("JPEG2000")[:90],
        "only-magic.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    }  # fmt: skip


def _disguised() -> dict[str, bytes]:
    """What is no picture at all."""
    array = io.BytesIO()
    np.save(array, np.zeros((8, 8, 3), np.uint8))
    return {
        "empty.png": b"",
        "text.png": b"cells, many cells",
        "page.jpg": b"<!DOCTYPE html><script>alert(1)</script>",
        "drawing.png": SVG,
        "drawing-utf16.png": SVG.decode().encode("utf-16"),
        "drawing-packed.png": gzip.compress(SVG),
        "laughs.jpg": LAUGHS,
        "entity.tif": XXE,
        "slide.tif": b'<?xml version="1.0"?><OME xmlns="x"><Image/></OME>',
        "paper.jpg": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd)(r)file\n",
        "script-of-dos.jpg": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, 99) + b"\0" * 20,
        "shell.png": b"#!/bin/sh\ntouch was-here\n",
        "program.png": b"\x7fELF\x02\x01\x01" + b"\0" * 99,
        "program-of-dos.png": b"MZ" + b"\0" * 99,
        "pickle.png": PICKLE,
        "array.png": array.getvalue(),
        "archive.png": zipped({"a.png": encoded("PNG")}),
        "packed.jpg": gzip.compress(b"\0" * 1_000_000),
        "film.jpg": b"\0\0\0\x20ftypavif" + b"\0" * 99,
        "icon.png": b"\0\0\x01\0\x01\0" + b"\xff" * 99,
        "photoshop.jpg": b"8BPS\0\x01" + b"\xff" * 99,
        "dicom.tif": b"\0" * 128 + b"DICM" + b"\0" * 99,
        "fits.tif": b"SIMPLE  =                    T" + b" " * 99,
        "windows-drawing.bmp": b"\xd7\xcd\xc6\x9a" + b"\0" * 99,
        "targa.bmp": b"\0\0\x02" + b"\0" * 9 + struct.pack("<HHBB", 9, 9, 24, 0) + b"\0" * 243,
        "hdf.png": b"\x89HDF\r\n\x1a\n" + b"\0" * 99,
        "byte-order-mark.png": b"\xef\xbb\xbf\x89PNG",
        "spaces.png": b" " * 9_999,
    }  # fmt: skip


def _polyglots() -> dict[str, bytes]:
    """Sound pictures that are something else besides."""
    archive, page = zipped({"a.sh": b"#!/bin/sh"}), b"<script>alert(1)</script>"
    whole = encoded("JPEG")
    return {
        "and-zip.jpg": whole + archive,
        "and-archive.png": encoded("PNG") + archive,
        "and-page.gif": encoded("GIF") + page,
        "and-script.gif": b"GIF89a/*" + encoded("GIF")[8:] + b"*/=1;alert(1)",
        "and-program.png": encoded("PNG") + b"<?php system($_GET[0]); ?>",
        "and-html.jpg": whole[:2] + segment(0xFE, page) + whole[2:],
        "and-paper.jpg": whole[:2] + segment(0xFE, b"%PDF-1.7\n") + whole[2:],
        "and-pickle.bmp": encoded("BMP") + PICKLE,
        "and-drawing.png": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LAUGHS)),
        "and-entity.jpg": whole[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XXE)
        + whole[2:],
        "picture-in-picture.jpg": whole[:2] + segment(0xFE, whole[:900]) + whole[2:],
    }  # fmt: skip


@functools.cache
def images() -> dict[str, bytes]:
    """All single files, by name."""
    found = {f"png-{name}.png": data for name, data in _pngs().items()}
    found |= {f"jpeg-{name}.jpg": data for name, data in _jpegs().items()}
    found |= {f"tiff-{name}.tif": data for name, data in _tiffs().items()}
    found |= {f"{name.rsplit('.')[-1]}-{name}": data for name, data in _others().items()}
    found |= {f"no-image-{name}": data for name, data in _disguised().items()}
    return found | {f"polyglot-{name}": data for name, data in _polyglots().items()}


# --- archives -------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _nested(depth: int) -> bytes:
    data = zipped({"0.bin": b"\0" * 1_000_000})
    for level in range(depth):
        data = zipped({f"{level}-{n}.zip": data for n in range(8)})
    return data


def _edited(data: bytes, change: Callable[[bytearray, int], None]) -> bytes:
    """A zip after a change at the entry of its (first file's) list."""
    edited = bytearray(data)
    change(edited, data.index(b"PK\x01\x02"))
    return bytes(edited)


def _set(offset: int, value: bytes) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, place: int) -> None:
        data[place + offset : place + offset + len(value)] = value

    return change


def _link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        info = zipfile.ZipInfo("device.png")
        info.create_system, info.external_attr = 3, (stat.S_IFCHR | 0o666) << 16
        archive.writestr(info, encoded("PNG"))
    return out.getvalue()


def _dictionary() -> bytes:
    """LZMA that asks for a dictionary of four gigabytes."""
    data = bytearray(zipped({"a.png": encoded("BMP")}, zipfile.ZIP_LZMA))
    place = data.index(b"a.png") + 5 + 5
    data[place : place + 4] = b"\xff" * 4
    return bytes(data)


SLIPS = (
    "../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "C:\\escaped.png",
    "\\\\host\\share\\escaped.png", "a/../../../escaped.png", "....//....//escaped.png",
    "~/escaped.png", "./././escaped.png", "con.png", "escaped.png/", "%2e%2e%2fescaped.png",
    "\x1b[31mescaped.png", "‮gnp.exe", "escaped\n.png", "x" * 4_000 + ".png",
    "/".join("a" * 900) + "/escaped.png", "..", ".", "-rf.png", "$(touch escaped).png",
    "=cmd|' /C calc'!A0.png", "<img src=x onerror=alert(1)>.png",
)  # fmt: skip


@functools.cache
def archives() -> dict[str, bytes]:
    """All zips, by name."""
    one = zipped({"a.png": encoded("PNG")})
    stored = zipped({"a.png": encoded("PNG")}, zipfile.ZIP_STORED)
    zeros = b"\0" * 5_000_000
    return {
        "slips.zip": zipped({name: encoded("PNG", (20 + n, 20)) for n, name in enumerate(SLIPS)}),
        "links.zip": _link(),
        "bomb.zip": zipped({"a.png": zeros}),
        "bomb-of-bzip2.zip": zipped({"a.png": zeros}, zipfile.ZIP_BZIP2),
        "bomb-of-lzma.zip": zipped({"a.png": zeros}, zipfile.ZIP_LZMA),
        "dictionary-of-gigabytes.zip": _dictionary(),
        "many-bombs.zip": zipped({f"{n}.png": b"\0" * 2_500_000 for n in range(20)}),
        "nested.zip": _nested(1),
        "hostile-images.zip": zipped(images()),
        "encrypted.zip": _edited(one, _set(8, b"\x01")),
        "method-99.zip": _edited(one, _set(10, b"\x63\0")),
        "size-lies-up.zip": _edited(one, _set(24, b"\xff\xff\xff\x7f")),
        "size-lies-down.zip": _edited(one, _set(24, b"\x01\0\0\0")),
        "packed-size-lies.zip": _edited(stored, _set(20, b"\xff\xff\xff\x7f")),
        "offset-lies.zip": _edited(one, _set(42, b"\xff\xff\xff\x7f")),
        "offset-to-itself.zip": _edited(one, _set(42, struct.pack("<I", len(one) - 22))),
        "crc.zip": _edited(one, _set(16, b"\0\0\0\0")),
        "name-too-long.zip": _edited(one, _set(28, b"\xff\xff")),
        "zip64-lies.zip": _edited(one, _set(20, b"\xff" * 8)),
        "list-cut.zip": one[:-30],
        "no-list.zip": one[: one.index(b"PK\x01\x02")],
        "only-end.zip": b"PK\x05\x06" + b"\0" * 18,
        "only-magic.zip": b"PK\x03\x04",
        "end-lies.zip": b"PK\x03\x04" + b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff" + b"\xff" * 10,
        "end-twice.zip": one + one[-22:],
        "comment-of-ends.zip": one[:-2] + struct.pack("<H", 22 * 900) + one[-22:] * 900,
        "too-many.zip": zipped({f"{n}.png": b"x" for n in range(400)}),
        "same-name.zip": _same_name(),
        "overlapping.zip": _overlapping(),
        "folders-only.zip": zipped({"a/": b"", "b/c/": b""}),
        "a-picture.zip": encoded("PNG"),
        "text.zip": b"no archive",
        "tar.zip": b"a.png" + b"\0" * 507,
        "pickle.zip": zipped({"archive/data.pkl": PICKLE, "archive/version": b"3"}),
    }


def _same_name() -> bytes:
    second = {"a.png": encoded("PNG"), "b.png": encoded("BMP")}
    return zipped(second).replace(b"b.png", b"a.png")


def _overlapping() -> bytes:
    """Many entries of the list that share one file's data."""
    one = zipped({"a.png": b"\0" * 100_000})
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    entries = one[start:end] * 200
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 200, 200, len(entries), start, 0)
    return one[:start] + entries + tail
