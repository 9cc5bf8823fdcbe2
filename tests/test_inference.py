"""Inference: reduced decoding, engines that agree, bounded look-ahead, a start without ballast."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from commands import Made, done, make, refused
from leukoscope.bundle import engines
from leukoscope.bundle.inference import BATCH, Answers, Reader
from leukoscope.data.index import load
from leukoscope.errors import UnreadableError
from leukoscope.imaging import read
from leukoscope.imaging.read import read_bytes_image, read_image
from leukoscope.parallel import WORKERS


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("small"))


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """A synthetic image with structures of many pixels, as cells have."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=90, **options)
    return written.getvalue()


# --- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_fast_decoder_gives_pillows_pixels(
    mode: str, progressive: bool, subsampling: int
) -> None:
    pytest.importorskip("simplejpeg", reason="NO SIMPLEJPEG: its decoder was not tested")
    options = {} if mode == "L" else {"subsampling": subsampling}
    data = jpeg(smooth(61, 83).convert(mode), progressive=progressive, **options)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(read_bytes_image(data), np.asarray(image.convert("RGB")))


def test_what_isnt_plain_is_read_whole_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(smooth(400, 300), exif=exif)
    assert read_bytes_image(turned).shape == (300, 400, 3)
    cmyk = jpeg(smooth(400, 300).convert("CMYK"))
    assert read_bytes_image(cmyk).shape == (400, 300, 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_cut_file_is_found(share: float) -> None:
    data = jpeg(smooth(400, 300))
    with pytest.raises(UnreadableError, match=r"ends before the image does|damaged"):
        read_bytes_image(data[: int(share * len(data))])


def test_without_the_fast_decoder_everything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(smooth(400, 300))
    fast = read_bytes_image(data)
    monkeypatch.setattr(read, "_fast_decoder", lambda: None)
    np.testing.assert_array_equal(read_bytes_image(data), fast)


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(jpeg(smooth(400, 300)))
    with pytest.raises(UnreadableError, match="more than the 1,000 allowed"):
        read_image(tmp_path / "large.jpg", max_pixels=1000)


# --- engines ------------------------------------------------------------------------------------


def test_engines_agree(small: Made) -> None:
    pytest.importorskip("openvino", reason="NO OPENVINO: its engine was not tested")
    paths = sorted((small.smear / "images").rglob("*.*g"))[:6]
    said = {}
    for name in engines.NAMES[1:]:
        reader = Reader.load(small.bundle, engine=name)
        assert reader.engine.outputs == reader.contract.model.outputs
        said[name] = np.concatenate([answer.probs for _, answer in reader.read(paths)])
    np.testing.assert_allclose(said["openvino"], said["onnxruntime"], atol=1e-4)
    np.testing.assert_allclose(said["openvino-bf16"], said["onnxruntime"], atol=0.05)


def test_an_engine_that_is_dropped_takes_nothing_with_it(small: Made) -> None:
    """OpenVINO's threads outlive its models; this once ended in a segmentation fault."""
    pytest.importorskip("openvino", reason="NO OPENVINO: its engine was not tested")
    script = (
        "import subprocess, sys, time; from pathlib import Path;"
        "from leukoscope.bundle import engines;"
        f"engines.race(Path({str(small.bundle / 'model.onnx')!r}).read_bytes(), (32, 32));"
        "time.sleep(0.5); subprocess.run([sys.executable, '-V'], check=True)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_an_engine_answers_for_any_number_of_images(small: Made) -> None:
    reader = Reader.load(small.bundle)
    images = np.random.default_rng(0).random((5, 3, *reader.contract.input.size), np.float32)
    together = reader.run(images, reader.contract.model.outputs)
    for place, image in enumerate(images):
        alone = reader.run(image[None], reader.contract.model.outputs)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[place], b[0])


def test_the_choice_of_an_engine_is_measured_once(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "_RACE", 0.02)
    graph = (small.bundle / "model.onnx").read_bytes()
    size = Reader.load(small.bundle).contract.input.size
    assert engines.choose(graph, size, "fp32", 10) == "onnxruntime"
    assert not list(tmp_path.rglob("*.json")), "few images: nothing is measured"
    chosen = engines.choose(graph, size, "fp32", engines.MANY)
    assert chosen in engines.NAMES[1:3], "bfloat16 only on request"
    monkeypatch.setattr(engines, "race", lambda *_: pytest.fail("measured again"))
    assert engines.choose(graph, size, "fp32", engines.MANY) == chosen
    for kept in tmp_path.rglob("*.json"):
        kept.write_text("garbage")
    monkeypatch.setattr(engines, "race", lambda *_: {"onnxruntime": 1.0})
    assert engines.choose(graph, size, "fp32", engines.MANY) == "onnxruntime"


def test_an_engine_that_answers_otherwise_is_out_of_the_race(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = engines.open_engine
    graph = (small.bundle / "model.onnx").read_bytes()

    def wrong(graph: bytes, name: str) -> engines.Engine:
        engine = opened(graph, "onnxruntime")
        if name == "onnxruntime":
            return engine
        run = engine.run
        return engines.Engine(name, engine.outputs, 1, lambda i, o: [1 + v for v in run(i, o)])

    monkeypatch.setattr(engines, "open_engine", wrong)
    monkeypatch.setattr(engines, "_RACE", 0.02)
    size = Reader.load(small.bundle).contract.input.size
    assert set(engines.race(graph, size)) == {"onnxruntime"}


def test_an_unknown_engine_is_refused(small: Made, tmp_path: Path) -> None:
    said = refused("predict", small.bundle, small.smear / "images", "-o", tmp_path / "p.csv",
                   "--engine", "openvin")  # fmt: skip
    assert "openvino" in said
    assert not (tmp_path / "p.csv").exists()


# --- the pipeline -------------------------------------------------------------------------------


def test_files_are_read_only_a_little_ahead(small: Made) -> None:
    """However many there are: the bound on memory."""
    reader = Reader.load(small.bundle)
    image = sorted((small.smear / "images").rglob("*.*g"))[0]
    asked = threading.Lock(), [0]

    def endless() -> Iterator[Path]:
        while True:
            with asked[0]:
                asked[1][0] += 1
            yield image

    answers = reader.read(endless())
    for taken in range(1, 200):
        next(answers)
        assert asked[1][0] <= taken + BATCH + 4 * WORKERS + 1
    answers.close()


def test_order_and_bad_files_are_kept(small: Made, tmp_path: Path) -> None:
    cells = load(small.cells)  # of what is readable
    images = [cells.path(name) for name in cells.frame["image"][:40]]
    paths: list[Path] = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number:02}.png")
        shutil.copy(image, paths[-1])
    for number in (0, 7, 39):
        paths[number].write_text("no image")
    reader = Reader.load(small.bundle)
    said = list(reader.read(paths))
    assert [path for path, _ in said] == paths
    assert [n for n, (_, a) in enumerate(said) if not isinstance(a, Answers)] == [0, 7, 39]
    alone = next(reader.read([paths[5]]))[1]
    found = said[5][1]
    assert isinstance(alone, Answers)
    assert isinstance(found, Answers)
    np.testing.assert_array_equal(alone.probs, found.probs)
    np.testing.assert_allclose(alone.novelty, found.novelty, rtol=1e-9)
    assert list(reader.read([])) == []


def test_csv_and_parquet_hold_the_same(small: Made, tmp_path: Path) -> None:
    images = sorted((small.smear / "images").rglob("*.*g"))[:3]
    for suffix in ("csv", "parquet"):
        done("predict", small.bundle, *images, "-o", tmp_path / f"said.{suffix}")
    csv, parquet = pd.read_csv(tmp_path / "said.csv"), pd.read_parquet(tmp_path / "said.parquet")
    assert list(csv) == list(parquet)
    numbers = parquet.select_dtypes("number").columns
    np.testing.assert_array_equal(csv[numbers], parquet[numbers])
    assert csv["predicted"].tolist() == parquet["predicted"].tolist()


def test_a_start_loads_only_what_it_needs(small: Made, tmp_path: Path) -> None:
    image = sorted((small.smear / "images").rglob("*.*g"))[0]
    script = (
        "import sys; from leukoscope import api;"
        f"api.predict({str(small.bundle)!r}, [{str(image)!r}], {str(tmp_path / 'out.csv')!r});"
        "print(*{'torch', 'pandas', 'pyarrow', 'sklearn', 'scipy', 'matplotlib', 'openvino'}"
        " & set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == ""
