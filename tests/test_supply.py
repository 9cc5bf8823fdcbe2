"""What the product is made of: licences, native libraries in wheels, pins with hashes, htmx."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
VENDOR = REPOSITORY / "src" / "leukoscope" / "review" / "static" / "vendor"
COPYLEFT = re.compile(r"\b[AL]?GPL|General Public|Affero|Proprietary|SSPL|Commons Clause", re.I)
INTEL = "Intel Simplified Software License: free to use and pass on; of the extra `fast` alone"
EXCEPTIONS = {"daal": INTEL, "tbb": INTEL, "tcmlib": INTEL}
# Native libraries beside the wheels' modules, by the start of the file's name.
FFMPEG = "LGPL-2.1: FFmpeg in OpenCV's wheel, a file of its own that can be exchanged; never called"
LIBRARIES = {
    "libav": FFMPEG, "libsw": FFMPEG,
    "libgfortran": "GPL-3.0 with GCC runtime exception",
    "libgomp": "GPL-3.0 with GCC runtime exception",
    "libquadmath": "LGPL-2.1, GCC's: a file of its own that can be exchanged",
    "libavif": "BSD-2-Clause", "libaom": "BSD-2-Clause", "libvpx": "BSD-3-Clause",
    "libscipy_openblas": "BSD-3-Clause", "libopenblas": "BSD-3-Clause",
    "libcrypto": "OpenSSL", "libssl": "OpenSSL", "libdrm": "MIT", "libXau": "MIT", "libxcb": "MIT",
    "libbrotli": "MIT", "libharfbuzz": "MIT", "liblcms2": "MIT", "libfreetype": "FTL",
    "libjpeg": "IJG AND BSD-3-Clause", "liblzma": "0BSD", "libopenjp2": "BSD-2-Clause",
    "libpng": "libpng-2.0", "libsharpyuv": "BSD-3-Clause", "libwebp": "BSD-3-Clause",
    "libtiff": "libtiff", "libz": "Zlib", "libzstd": "BSD-3-Clause",
    "libcudart": "NVIDIA CUDA EULA (redistributable)",
    "libnvjpeg": "NVIDIA CUDA EULA (redistributable)",
}  # fmt: skip


@pytest.fixture(scope="module")
def core() -> dict[str, Distribution]:
    """What the product draws in, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / ".ci")
        return importlib.import_module("supply").core()


def _licence(of: Distribution) -> str:
    """The licences that a distribution's metadata name; its licence file where they name none."""
    about = of.metadata
    said = [about.get("License-Expression") or "", about.get("License") or ""]
    said += [c for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    # A whole text in place of a name also speaks of other works.
    text = " ".join(part for part in said if part != "UNKNOWN" and len(part) < 200)
    files = [file for file in of.files or [] if re.match(r"licen[sc]e|copying", file.name, re.I)]
    return text or " ".join(Path(str(of.locate_file(file))).read_text("utf-8") for file in files)


def test_the_core_is_free_of_copyleft(core: dict[str, Distribution]) -> None:
    licences = {name: _licence(found) for name, found in core.items()}
    assert len(licences) > 60
    silent = [name for name, text in licences.items() if not text.strip()]
    assert not silent, "these say nothing about their licence"
    caught = {name for name, text in licences.items() if COPYLEFT.search(text)}
    assert not caught - set(EXCEPTIONS), {n: licences[n][:200] for n in caught - set(EXCEPTIONS)}


@pytest.mark.skipif(sys.platform != "linux", reason="wheels of other systems hold other libraries")
def test_native_libraries_are_known() -> None:
    """A library that comes with a new version of a wheel is looked at before it passes."""
    site = Path(str(distribution("numpy").locate_file("")))
    names = {file.name for folder in site.glob("*.libs") for file in folder.iterdir()}
    unknown = sorted(name for name in names if not name.startswith(tuple(LIBRARIES)))
    assert not unknown
    lgpl = {name for name in names if re.match(r"lib(av(codec|format|util)|sw)", name)}
    assert all((site / "opencv_python_headless.libs" / name).is_file() for name in lgpl)


def _pins(path: Path) -> dict[str, set[str]]:
    """The versions of each package that a lock file names."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", path.read_text("utf-8"), re.M):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def test_every_pin_but_torch_has_its_hashes() -> None:
    hashed = REPOSITORY / "constraints-hashed.txt"
    pins, locked = _pins(REPOSITORY / "constraints.txt"), _pins(hashed)
    torch = pins.pop("torch")  # from an index of its own, without CUDA or with
    assert len(torch) == 1
    assert locked == pins, "run: make lock"
    for entry in re.split(r"\n(?=\S)", hashed.read_text("utf-8").strip()):
        assert entry.startswith("#") or "--hash=sha256:" in entry, entry


def test_everything_the_product_draws_in_is_pinned(core: dict[str, Distribution]) -> None:
    pins = _pins(REPOSITORY / "constraints.txt")
    assert not set(core) - set(pins) - {"leukoscope"}


def test_vendored_files_are_those_published() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text("utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    files = {f.name for f in VENDOR.iterdir()} - {"SHA256SUMS"}
    assert set(sums) == files
    for name, digest in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
    (script,) = (name for name in sums if name.endswith(".js"))
    version = script.removeprefix("htmx-").removesuffix(".min.js")
    assert f'version:"{version}"' in (VENDOR / script).read_text("utf-8")
    assert "Zero-Clause BSD" in (VENDOR / "htmx-LICENSE.txt").read_text("utf-8")
