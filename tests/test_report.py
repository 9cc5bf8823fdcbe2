"""The report: complete with all input, honest without some, safe with hostile names."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from leukoscope import api
from leukoscope.errors import InputError
from leukoscope.evaluate.metrics import compute
from leukoscope.report import comparison, figures, numbers, verdict
from leukoscope.report import run as report
from leukoscope.report.inputs import load
from leukoscope.report.numbers import count
from leukoscope.report.sections_errors import held_out
from leukoscope.report.sections_results import chosen_epoch
from leukoscope.report.sections_trust import reliability_bins

CLASSES = ["basophil", "eosinophil", "ig", "lymphocyte", "monocyte", "neutrophil"]
SECTIONS = [
    *("verdict", "audit", "split", "samples", "learning", "confusion", "classes", "roc"),
    *("published", "protocols", "baseline", "calibration", "robustness", "errors", "failures"),
    *("explanations", "environment"),
]


# --- a realistic run, synthetic throughout ----------------------------------------------------


def draw_cell(path: Path, kind: int, rng: np.random.Generator) -> None:
    """A made-up stained cell on a pale ground: good enough to look at in a report."""
    image = Image.new("RGB", (96, 96), tuple(int(v) for v in rng.integers(218, 240, 3)))
    draw = ImageDraw.Draw(image)
    for x, y in rng.integers(0, 96, (5, 2)).tolist():
        draw.ellipse((x - 17, y - 17, x + 17, y + 17), fill=(226, 188, 186))
    size = 26 + kind
    draw.ellipse((48 - size, 48 - size, 48 + size, 48 + size), fill=(196 - 9 * kind, 176, 214))
    for lobe in range(1 + kind % 4):
        dx, dy = rng.integers(-12, 12, 2).tolist()
        r = 16 - 2 * (kind % 4)
        draw.ellipse(
            (48 + dx - r, 48 + dy - r, 48 + dx + r, 48 + dy + r), fill=(92 + 8 * lobe, 58, 138)
        )
    image.save(path, quality=88)


def make_run(folder: Path, classes: list[str] = CLASSES, *, pictures: bool = False) -> Path:
    """A run folder with every file that DESIGN.md names and the report reads."""
    rng = np.random.default_rng(7)
    run, root = folder / "run", folder / "images"
    run.mkdir(parents=True)
    root.mkdir()
    k, n = len(classes), 400
    total = n + 6 * k * 4
    kinds = rng.choice(k, total, p=np.linspace(2, 1, k) / np.linspace(2, 1, k).sum())
    names = [f"cell_{i:04d}.jpg" for i in range(total)]
    role = np.array(["test"] * n + ["train"] * (total - n), dtype=object)
    role[n : n + 2 * k] = "validation"
    patients = np.array([f"P-{r[:2]}-{i % 12:02d}" for i, r in enumerate(role)])
    for i in range(0, total, 1 if pictures else 16):
        draw_cell(root / names[i], int(kinds[i]), rng)
    labels = np.array(classes, dtype=object)[kinds]
    cells = pd.DataFrame({"image": names, "label": labels, "patient": patients})
    cells.to_parquet(folder / "cells.parquet")
    pd.DataFrame({"image": names, "fold": 0, "role": role}).to_parquet(run / "split.parquet")

    logits = rng.normal(0, 1, (n, k)) + 2.6 * np.eye(k)[kinds[:n]]
    logits[kinds[:n] == 2, 5 % k] += 1.7
    probs = np.exp(1.5 * logits) / np.exp(1.5 * logits).sum(axis=1, keepdims=True)
    predicted = np.array(classes, dtype=object)[probs.argmax(axis=1)]
    frame = pd.DataFrame(
        {"image": names[:n], "patient": patients[:n], "label": labels[:n], "predicted": predicted}
    )
    columns = pd.DataFrame(probs, columns=[f"prob_{c}" for c in classes])
    frame.join(columns).assign(role="test").to_parquet(run / "predictions.parquet")

    metrics = compute(list(labels[:n]), list(predicted), probs, classes)
    half = dict.fromkeys(("accuracy", "macro_f1", "balanced_accuracy", "cohen_kappa", "ece"), 0.03)
    metrics["ci"] = {m: [metrics[m] - h, metrics[m] + h] for m, h in half.items()}
    metrics["baseline"] = {"majority": 0.24, "colour_knn": 0.435}
    metrics["roc_auc_ovr"] = None
    metrics["undefined"] = {"roc_auc_ovr": "left undefined by the fixture to be seen"}
    dump(run / "metrics.json", metrics)
    write_audit(run, names)
    write_rest(folder, run, metrics, names, classes)
    return run


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_audit(run: Path, names: list[str]) -> None:
    dump(
        run / "audit.json",
        {
            "unreadable": [{"image": "broken.jpg", "why": "the file ends too early"}],
            "exact_duplicates": [[names[0], names[16]], [names[32], names[48]]],
            "near_duplicates": [[names[64], names[80], names[96]]],
            "label_conflicts": [[names[112], names[128]]],
            "patients_across_roles": [],
            "duplicates_across_roles": [],
            "shortcut": {
                "accuracy": 0.435,
                "low": 0.39,
                "high": 0.48,
                "majority": 0.24,
                "features": ["mean_red", "mean_green"],
            },
            "verdict": "clean",
            "summary": [
                "544 images of 6 classes from 27 patients were read; one file could not be.",
                "A classifier that only sees average colour already reaches 43.5%.",
            ],
        },
    )


def write_rest(
    folder: Path, run: Path, metrics: dict[str, Any], names: list[str], classes: list[str]
) -> None:
    epochs = np.arange(1, 13)
    loss = 1.6 * np.exp(-epochs / 3)
    pd.DataFrame(
        {
            "phase": [1] * 6 + [2] * 6,
            "epoch": epochs,
            "train_loss": loss + 0.2,
            "train_accuracy": 0.93 - 0.5 * np.exp(-epochs / 3),
            "validation_loss": loss + 0.38 + 0.004 * (epochs - 7) ** 2,
            "validation_accuracy": 0.85 - 0.4 * np.exp(-epochs / 3),
            "learning_rate": 5e-4,
            "seconds": 4.2,
        }
    ).to_csv(run / "history.csv", index=False)
    (run / "recipe.toml").write_text(
        'name = "lightweight-cnn"\ntitle = "Lightweight networks for blood cells"\n'
        'arm = "mobilenetv2"\nprotocol = "clean"\nseed = 0\n'
        '[paper]\ncitation = "Hussain et al. 2025"\ndoi = "10.1000/example.5"\n'
        '[[preprocessing]]\nstep = "resize"\nsize = 224\n'
        '[[published]]\ntitle = "Main figures"\nclasses = 6\n'
        "[published.figures.mobilenetv2]\naccuracy = 0.9442\nmacro_recall = 0.956\n"
        "cohen_kappa = 0.928\nroc_auc_ovr = 0.997\n"
        '"history.2.validation_accuracy" = 0.9233\n"per_class.NPM1.recall" = 0.95\n'
        '[[published]]\ntitle = "Two classes"\nclasses = 2\n'
        "[published.figures.mobilenetv2]\naccuracy = 0.99\n",
        encoding="utf-8",
    )
    dump(
        run / "environment.json",
        {
            "leukoscope": "0.1.0",
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "packages": {"numpy": "2.4.6", "torch": "2.13.0"},
            "device": "cpu",
            "seed": 0,
            "protocol": "clean",
            "arm": "mobilenetv2",
            "weights": {"source": "path", "sha256": "13c4a221" * 8},
            "index": {
                "path": str(folder / "cells.parquet"),
                "root": str(folder / "images"),
                "name": "Synthetic smear",
                "licence": "CC0-1.0",
                "citation": "Leukoscope",
                "layout": "folder",
                "n": len(names),
                "synthetic": True,
            },
            "started": "2025-05-04T10:00:00Z",
            "seconds": 233.0,
            "command": "leukoscope train lightweight-cnn cells.parquet -o RUN --protocol clean",
        },
    )
    other = {m: min(1.0, metrics[m] + 0.05) for m in ("accuracy", "macro_f1", "cohen_kappa")}
    dump(
        run / "beside.json",
        {
            "protocol": "published",
            "run": "../published",
            "metrics": other,
            "ci": {m: [v - 0.02, v + 0.02] for m, v in other.items()},
            "difference": {m: {"value": 0.05, "low": 0.012, "high": 0.088} for m in other},
        },
    )
    (run / "explain").mkdir()
    shown = []
    for i in range(4):
        Image.open(folder / "images" / names[16 * i]).save(run / "explain" / f"{i}.png")
        shown.append(
            {
                "image": names[i],
                "file": f"{i}.png",
                "label": classes[0],
                "predicted": classes[i % 2],
            }
        )
    dump(run / "explain" / "explain.json", shown)
    pd.DataFrame(
        [
            (c, s, 0.85 - 0.03 * s * (i + 1))
            for i, c in enumerate(("blur", "noise", "jpeg", "hue"))
            for s in range(5)
        ],
        columns=["corruption", "severity", "accuracy"],
    ).to_csv(run / "robustness.csv", index=False)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture
def run(full_run: Path, tmp_path: Path) -> Path:
    """A copy of the full run that a test may spoil; the images stay where they are."""
    return Path(shutil.copytree(full_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def full_html(full_run: Path) -> str:
    return report.write(full_run).read_text(encoding="utf-8")


# --- reading a page ---------------------------------------------------------------------------


class Reader(HTMLParser):
    """Every element with its attributes and the elements it stands in; text by section."""

    VOID = frozenset({"meta", "link", "img", "br", "use", "path", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.section = ""
        self.texts: dict[str, str] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values, tuple(self.stack)))
        if tag == "section":
            self.section = values["id"]
        if tag not in {"meta", "link", "img"}:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {n: v or "" for n, v in attrs}, tuple(self.stack)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


def text(reader: Reader, section: str) -> str:
    return " ".join(reader.texts[section].split())


def read(page: Path) -> Reader:
    """A page with the cells of its tables apart."""
    return Reader(re.sub("</t[dh]>", r" \g<0>", page.read_text(encoding="utf-8")))


# --- tests ------------------------------------------------------------------------------------


def test_full_report_has_every_section_in_order(full_html: str) -> None:
    reader = Reader(full_html)
    assert not reader.stack
    assert [s["id"] for s in reader.all("section")] == [*SECTIONS, "notes"]
    own = re.sub(r'<section id="explanations".*?</section>', "", full_html, flags=re.S)
    assert 'class="missing"' not in own
    anchors = {a["href"] for a in reader.all("a") if a["href"].startswith("#")}
    ids = [e["id"] for _, e, _ in reader.elements if "id" in e]
    assert len(ids) == len(set(ids))
    assert {a[1:] for a in anchors} <= set(ids)


def test_verdict_says_what_matters(full_html: str, full_run: Path) -> None:
    metrics = json.loads((full_run / "metrics.json").read_text())
    said = text(Reader(full_html), "verdict")
    low, high = metrics["ci"]["accuracy"]
    assert f"{100 * metrics['accuracy']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" in said
    assert "400 test images under the clean protocol" in said
    assert "43.5% [39.0, 48.0]" in said
    assert "is clear" in said
    assert "found no leak" in said
    assert "not a diagnosis" in said
    assert "Synthetic data" in full_html


def test_nothing_is_loaded_from_elsewhere(full_html: str) -> None:
    reader = Reader(full_html)
    for tag, attributes, _ in reader.elements:
        assert tag not in {"script", "iframe", "object", "embed"}
        for name in ("src", "srcset", "poster", "data", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
        if tag != "a":
            assert attributes.get("href", "#").startswith(("#", "data:"))
    outside = {a["href"] for a in reader.all("a") if "//" in a["href"]}
    assert outside == {"https://doi.org/10.1000/example.5"}
    assert "@import" not in full_html
    assert not re.search(r"url\((?!#)", full_html)


def test_every_picture_has_words(full_html: str) -> None:
    reader = Reader(full_html)
    for tag, attributes, inside in reader.elements:
        if tag == "img":
            assert attributes["alt"].strip()
            assert "figure" in inside
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"].strip()
            assert "figure" in inside
    assert len(reader.all("figcaption")) == len(reader.all("figure"))
    assert all(th.get("scope") for th in reader.all("th"))
    assert all("figure" in inside for tag, _, inside in reader.elements if tag == "table")
    assert [tag for tag, _, _ in reader.elements].count("main") == 1
    assert "Most confusions: ig taken for neutrophil" in text(reader, "confusion")


def test_undefined_has_its_reason(full_html: str) -> None:
    reader = Reader(full_html)
    assert {"title": "left undefined by the fixture to be seen"} in reader.all("abbr")
    assert "left undefined by the fixture" in text(reader, "notes")


def test_figures_are_written_with_their_data(full_run: Path, full_html: str) -> None:
    stems = {f.stem for f in (full_run / "figures").glob("*.svg")}
    assert stems == {f.stem for f in (full_run / "figures").glob("*.csv")}
    assert stems == {
        *("learning_loss", "learning_accuracy", "confusion_matrix", "protocols", "baseline"),
        *("reliability", "robustness", "roc"),
    }
    matrix = pd.read_csv(full_run / "figures" / "confusion_matrix.csv")
    assert matrix["count"].sum() == 400
    assert "<text" in (full_run / "figures" / "reliability.svg").read_text()
    for stem in stems:
        assert f'download="{stem}.csv"' in full_html


def test_the_same_run_gives_the_same_bytes(full_run: Path, full_html: str) -> None:
    before = {f.name: f.read_bytes() for f in (full_run / "figures").iterdir()}
    assert report.write(full_run).read_text(encoding="utf-8") == full_html
    assert before == {f.name: f.read_bytes() for f in (full_run / "figures").iterdir()}


@pytest.mark.parametrize(
    "gone",
    [
        {
            "audit.json": "audit",
            "split.parquet": "split",
            "history.csv": "learning",
            "recipe.toml": "published",
            "beside.json": "protocols",
            "explain": "explanations",
        },
        {"predictions.parquet": "failures calibration"},
        {"environment.json": "environment samples"},
    ],
    ids=lambda gone: "+".join(gone),
)
def test_what_is_missing_is_said(run: Path, gone: dict[str, str]) -> None:
    for name in gone:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = report.write(run).read_text(encoding="utf-8")
    assert [s["id"] for s in Reader(html).all("section") if s["id"] != "notes"] == SECTIONS
    for section in " ".join(gone.values()).split():
        part = html.split(f'<section id="{section}"')[1].split("</section>")[0]
        assert 'class="missing"' in part
        assert "<code>" in part


def test_foreign_predictions_alone(run: Path) -> None:
    for path in run.iterdir():
        if path.name not in {"metrics.json", "predictions.parquet"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    frame = pd.read_parquet(run / "predictions.parquet")[["label", "predicted"]]
    frame.to_parquet(run / "predictions.parquet")
    metrics = json.loads((run / "metrics.json").read_text())
    kept = {k: metrics[k] for k in ("n", "accuracy", "classes", "confusion_matrix")}
    dump(run / "metrics.json", kept)
    reader = Reader(report.write(run).read_text(encoding="utf-8"))
    said = text(reader, "verdict")
    assert "Guessing the commonest class reaches" in said
    assert "No audit was made" in said
    assert "no patient is known" in said


def test_metrics_alone_and_a_folder_without(run: Path, tmp_path: Path) -> None:
    dump(run / "metrics.json", {"n": 0, "accuracy": None})
    for path in run.iterdir():
        if path.name != "metrics.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "undefined" in text(Reader(report.write(run).read_text(encoding="utf-8")), "verdict")
    with pytest.raises(InputError, match=r"metrics\.json"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("audit.json", b"{"),
        ("audit.json", b"[]"),
        ("history.csv", b""),
        ("history.csv", b"a,b\n1,2\n"),
        ("split.parquet", b"PAR1 no parquet"),
        ("recipe.toml", b"a = ["),
        ("robustness.csv", b"\xff\xfe\x00"),
    ],
)
def test_a_broken_file_is_named(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(name)) as caught:
        report.write(run)
    assert caught.value.fix


EVIL = "<script>alert(1)</script>"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    classes = [EVIL, "$x_{$", "\u202eesrever", "\"quoted\" & 'so'", "白血球", "a" * 200]
    run = make_run(tmp_path, classes)
    evil = f'x" onerror="alert(1) {EVIL}.jpg'
    frame = pd.read_parquet(run / "predictions.parquet")
    frame.loc[0, "image"] = evil
    frame.loc[0, "predicted"] = classes[1]
    frame.to_parquet(run / "predictions.parquet")
    audit = json.loads((run / "audit.json").read_text())
    audit["exact_duplicates"] = [[evil, "\x00\x1b[31m\udcff.jpg"]]
    audit["summary"] = [f"{{{{ 7 * 7 }}}} {EVIL}"]
    dump(run / "audit.json", audit)
    environment = json.loads((run / "environment.json").read_text())
    environment["index"] |= {"name": EVIL, "citation": "javascript:alert(1)"}
    environment["command"] = EVIL
    dump(run / "environment.json", environment)
    explain = json.loads((run / "explain" / "explain.json").read_text())
    explain[0] |= {"image": evil, "file": "../../../../etc/passwd"}
    dump(run / "explain" / "explain.json", explain)
    (run / "recipe.toml").write_text(
        f"title = '{EVIL}'\narm = 'a'\n[paper]\ndoi = 'javascript:alert(1)'\n"
        '[[published]]\ntitle = "A"\n[published.figures.a]\naccuracy = 0.9\n'
    )
    html = report.write(run).read_text(encoding="utf-8")
    reader = Reader(html)
    assert not reader.all("script")
    assert "{{ 7 * 7 }}" in html
    assert "\u202e" not in html
    assert "\x00" not in html
    assert not [a for a in reader.all("a") if a["href"].startswith("javascript")]
    for _, attributes, _ in reader.elements:
        assert "onerror" not in attributes
    assert all("<script" not in f.read_text() for f in (run / "figures").glob("*.svg"))


def test_verdict_names_a_leak_and_an_unclear_gain(run: Path) -> None:
    audit = json.loads((run / "audit.json").read_text())
    dump(run / "audit.json", audit | {"verdict": "leak"})
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["baseline"] = {"majority": 0.2, "colour_knn": metrics["accuracy"] - 0.01}
    dump(run / "metrics.json", metrics)
    assert "The audit found a leak" in verdict.leak(load(run))[1]
    assert "is not clear, for the interval reaches down to it" in verdict.gain(load(run))
    metrics["baseline"]["colour_knn"] = metrics["accuracy"] + 0.01
    dump(run / "metrics.json", metrics)
    assert "no better than" in verdict.gain(load(run))


def test_published_protocol_is_named_as_such(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    dump(run / "environment.json", environment | {"protocol": "published"})
    frame = pd.read_parquet(run / "predictions.parquet")
    pd.concat([frame.assign(view=v) for v in (0, 1)]).to_parquet(run / "predictions.parquet")
    said = text(Reader(report.write(run).read_text(encoding="utf-8")), "verdict")
    assert "leaks included" in said
    assert "Figures count views" in said
    assert "by design" in said


def test_images_that_moved(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    environment["index"]["root"] = str(run / "gone")
    dump(run / "environment.json", environment)
    reader = Reader(report.write(run).read_text(encoding="utf-8"))
    assert "The images are not at" in text(reader, "samples")
    assert "The images are not at" in text(reader, "failures")


@pytest.mark.parametrize("k", [2, 14])
def test_confusion_matrix_of_few_and_many_classes(k: int) -> None:
    counts = np.random.default_rng(1).integers(0, 30, (k, k))
    counts[0] = 0
    drawing = figures.confusion_matrix(counts, [f"class {i}" for i in range(k)])
    assert len(drawing.data) == k * k
    assert drawing.data["row_share"].isna().sum() == k
    assert drawing.data["count"].sum() == counts.sum()


def test_reliability_bins_give_the_ece(full_run: Path) -> None:
    run = load(full_run)
    bins = reliability_bins(run)
    gaps = (bins["confidence"] - bins["accuracy"]).abs() * bins["n"] / bins["n"].sum()
    assert gaps.sum() == pytest.approx(run.metrics["ece"], abs=1e-12)


def test_chosen_epoch_is_the_last_phases_best() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3], "validation_loss": [0.3, np.nan, 0.4]})
    assert chosen_epoch(history) == 0
    assert chosen_epoch(history.assign(phase=[1, 2, 2])) == 2
    assert chosen_epoch(history[["epoch"]]) is None


def test_figures_by_patient_phase_and_fold_stand_beside(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    half = {"n": 12, "accuracy": 0.75, "macro_f1": None, "undefined": {"macro_f1": "of one class"}}
    spread = {"mean": 0.8, "sd": 0.02, "values": [0.78, 0.82]}
    metrics |= {
        "patient_level": half | {"level": "patient", "ci": {"accuracy": [0.5, 0.9]}},
        "phases": {"1": half},
        "folds": {"accuracy": spread, "macro_f1": spread},
    }
    dump(run / "metrics.json", metrics)
    classes = text(read(report.write(run)), "classes")
    assert "By patient, mean probability 12 patients 75.0% [50.0, 90.0] undefined" in classes
    assert "After phase 1 12 images 75.0% undefined" in classes
    assert "2 folds 80.0% ± 2.0% 80.0% ± 2.0%" in classes


# --- learning curves of several folds and networks --------------------------------------------


def history(**more: Any) -> pd.DataFrame:
    loss = np.array([0.9, 0.5, 0.4, 0.6, 0.3, 0.35])
    columns = {"phase": [1, 1, 1, 2, 2, 2], "epoch": range(1, 7)}
    columns |= {"train_loss": loss - 0.1, "train_accuracy": 1 - loss / 2}
    columns |= {"validation_loss": loss, "validation_accuracy": 0.95 - loss / 2}
    return pd.DataFrame(columns | more)


def test_learning_curves_are_drawn_by_fold_with_the_epoch_each_kept(run: Path) -> None:
    later = history(validation_loss=[0.9, 0.8, 0.7, 0.6, 0.5, 0.2])
    folds = pd.concat([history().assign(fold=0), later.assign(fold=1)])
    folds.to_csv(run / "history.csv", index=False)
    said = text(Reader(report.write(run).read_text(encoding="utf-8")), "learning")
    assert "rings mark the epochs kept: 5 and 6" in said
    assert "Dotted lines part the phases" in said
    drawn = pd.read_csv(run / "figures" / "learning_loss.csv")
    assert sorted(drawn["fold"].unique()) == [0, 1]
    chosen = [4, 11]
    drawing = figures.learning_curve(folds.reset_index(drop=True), "loss", chosen)
    assert drawing is not None
    axes = drawing.figure.axes[0]
    rings = next(line for line in axes.lines if line.get_label() == "epoch kept")
    assert list(zip(*rings.get_data(), strict=True)) == [(5, 0.3), (6, 0.2)]
    borders = [line for line in axes.lines if list(line.get_xdata()) == [3.5, 3.5]]
    assert len(borders) == 1


def test_each_network_has_curves_of_its_own(run: Path) -> None:
    both = pd.concat([history().assign(network=n) for n in ("densenet121", "resnet50")])
    both.to_csv(run / "history.csv", index=False)
    said = text(Reader(report.write(run).read_text(encoding="utf-8")), "learning")
    assert "densenet121: Epoch 5 of 6 was kept" in said
    assert {f.stem for f in (run / "figures").glob("learning_*_*.svg")} == {
        f"learning_{n}_{w}" for n in ("densenet121", "resnet50") for w in ("loss", "accuracy")
    }


def test_an_average_of_epochs_is_none_of_them(run: Path) -> None:
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text() + "[training.averaging]\nstart = 2\n", encoding="utf-8")
    said = text(Reader(report.write(run).read_text(encoding="utf-8")), "learning")
    assert "average over the last epochs" in said


# --- learning from errors ---------------------------------------------------------------------


def spoiled(run: Path) -> tuple[str, str, str]:
    """Give the surest right answer another label: (image, wrong label, right one)."""
    frame = pd.read_parquet(run / "predictions.parquet")
    columns = [f"prob_{c}" for c in CLASSES]
    right = frame["label"] == frame["predicted"]
    row = frame.loc[right, columns].max(axis=1).idxmax()
    image, true = frame.loc[row, ["image", "label"]]
    wrong = next(c for c in CLASSES if c != true)
    frame.loc[row, "label"] = wrong
    frame.to_parquet(run / "predictions.parquet")
    return image, wrong, true


def test_a_wrong_label_heads_the_list_of_suspects(run: Path) -> None:
    image, wrong, true = spoiled(run)
    said = text(Reader(report.write(run).read_text(encoding="utf-8")), "errors")
    sheet = pd.read_csv(run / "errors.csv")
    assert list(sheet) == ["image", "label", "suggested", "confidence", "why"]
    assert tuple(sheet.loc[0, ["image", "label", "suggested"]]) == (image, wrong, true)
    assert sheet.loc[0, "confidence"] > 0.9
    assert "These are suspects, not errors" in said
    assert "Classes, hardest first:" in said
    assert "ig taken for neutrophil" in said


def test_duplicates_of_another_label_are_on_the_list(run: Path) -> None:
    cells = load(run).cells
    assert cells is not None
    first = cells["image"].iloc[-1]
    other = cells.loc[cells["label"] != cells["label"].iloc[-1], "image"].iloc[-1]
    audit = json.loads((run / "audit.json").read_text())
    dump(run / "audit.json", audit | {"label_conflicts": [[first, other]]})
    said = text(Reader(report.write(run).read_text(encoding="utf-8")), "errors")
    sheet = pd.read_csv(run / "errors.csv").set_index("image")
    assert f"stands under another label: {other}" in sheet.loc[first, "why"]
    assert f"stands under another label: {first}" in sheet.loc[other, "why"]
    assert "more images have a duplicate of another label" in said


def test_every_fold_counts_and_an_image_once(run: Path) -> None:
    frame = pd.read_parquet(run / "predictions.parquet")
    half = len(frame) // 2
    folds = [frame.assign(fold=0), frame.iloc[:half].assign(fold=1, role="validation")]
    pd.concat(folds).to_parquet(run / "predictions.parquet")
    found = held_out(load(run))
    assert found is not None
    assert len(found) == len(frame)


# --- foreign predictions ----------------------------------------------------------------------


def foreign(run: Path, folder: Path) -> Path:
    """The run's predictions as another tool would give them."""
    frame = pd.read_parquet(run / "predictions.parquet").drop(columns="role")
    path = folder / "predictions.csv"
    frame.to_csv(path, index=False)
    return path


def test_evaluate_writes_a_page_for_foreign_predictions(full_run: Path, tmp_path: Path) -> None:
    source = foreign(full_run, tmp_path)
    api.evaluate(source, out=tmp_path / "metrics.json", report=tmp_path / "page")
    reader = read(tmp_path / "page" / "report.html")
    sections = [s["id"] for s in reader.all("section")]
    assert set(sections) >= {"verdict", "confusion", "classes", "roc", "baseline", "calibration"}
    assert set(sections) >= {"errors", "failures"}
    assert not set(sections) & {"audit", "split", "samples", "learning", "published", "protocols"}
    assert "the right class for" in text(reader, "verdict")
    assert "of 400 images; over" in text(reader, "verdict")
    assert "only if the model was not trained on these images" in text(reader, "errors")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    low, high = metrics["ci"]["per_class.ig.recall"]
    recall = metrics["per_class"]["ig"]["recall"]
    assert f"{100 * recall:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" in text(reader, "classes")
    stems = {f.stem for f in (tmp_path / "page" / "figures").glob("*.svg")}
    assert stems >= {"confusion_matrix", "roc", "baseline", "reliability"}
    assert stems == {f.stem for f in (tmp_path / "page" / "figures").glob("*.csv")}
    assert (tmp_path / "page" / "report.pdf").read_bytes().startswith(b"%PDF")
    assert source.read_bytes() == foreign(full_run, tmp_path).read_bytes()


def test_the_list_of_errors_never_replaces_the_predictions(full_run: Path, tmp_path: Path) -> None:
    source = foreign(full_run, tmp_path).rename(tmp_path / "errors.csv")
    before = source.read_bytes()
    with pytest.raises(InputError, match="also an input"):
        api.evaluate(source, report=tmp_path)
    assert source.read_bytes() == before


def test_labels_alone_make_a_page(full_run: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(foreign(full_run, tmp_path))[["label", "predicted"]]
    frame.to_csv(tmp_path / "labels.csv", index=False)
    api.evaluate(tmp_path / "labels.csv", report=tmp_path / "page")
    reader = read(tmp_path / "page" / "report.html")
    for section in ("roc", "calibration", "errors"):
        assert "robabilities" in text(reader, section)
    assert "Most confused pairs" in text(reader, "errors")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons", "image;label;predicted;prob_1;prob_2\na;1;1.0;0,9;0,1\nb;2;1;0,6;0,4\n"),
        ("tabs", "image\tlabel\tpredicted\na\t1\t1\nb\t2\t1\n"),
        ("mark", "\ufefflabel,predicted\n1,1.0\n2.0,1\n"),
        ("floats", "label,predicted,prob_1.0,prob_2.0\n1.0,1.0,0.9,0.1\n2.0,1.0,0.6,0.4\n"),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / f"{name}.csv"
    path.write_text(content, encoding="utf-8")
    found = api.evaluate(path)
    assert found["classes"] == ["1", "2"]
    assert found["accuracy"] == 0.5
    assert (found["log_loss"] is None) != ("prob" in content)


def test_classes_that_are_no_whole_numbers_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("label,predicted\n1.5,1.5\n1.0,1\n", encoding="utf-8")
    assert api.evaluate(path)["classes"] == ["1", "1.0", "1.5"]


# --- any two or more --------------------------------------------------------------------------


def test_compare_writes_a_page(full_run: Path, tmp_path: Path) -> None:
    source = foreign(full_run, tmp_path)
    worse = pd.read_csv(source)
    columns = [f"prob_{c}" for c in CLASSES]
    rng = np.random.default_rng(0)
    noisy = 0.3 * worse[columns] + 0.7 * rng.dirichlet(np.ones(len(CLASSES)), len(worse))
    worse[columns] = noisy
    worse["predicted"] = np.array(CLASSES)[noisy.to_numpy().argmax(axis=1)]
    worse.iloc[:-5].to_csv(tmp_path / "worse | noisy.csv", index=False)
    labels = tmp_path / "labels.csv"
    worse[["image", "label", "predicted"]].to_csv(labels, index=False)
    found = api.compare([source, tmp_path / "worse | noisy.csv", labels], report=tmp_path / "page")
    reader = read(tmp_path / "page" / "report.html")
    said = text(reader, "verdict")
    assert "On the 395 images that all predicted, predictions.csv is best" in said
    assert "The difference to worse | noisy.csv and labels.csv is clear" in said
    assert "labels.csv 5" in said
    overall = text(reader, "overall")
    assert "Metric predictions.csv worse | noisy.csv labels.csv" in overall
    assert f"{count(len(found['pairs']), 'pair')} differ" in text(reader, "tests")
    assert "Recall by class; the models differ most on" in text(reader, "classes")
    figures_ = {f.stem for f in (tmp_path / "page" / "figures").glob("*.svg")}
    assert figures_ == {"accuracy", "macro_f1", "reliability", "roc_1", "roc_2",
                        *(f"confusion_matrix_{i}" for i in (1, 2, 3))}  # fmt: skip
    assert figures_ == {f.stem for f in (tmp_path / "page" / "figures").glob("*.csv")}
    assert (tmp_path / "page" / "report.pdf").is_file()
    assert len(reader.all("figcaption")) == len(reader.all("figure"))


# --- several runs -----------------------------------------------------------------------------


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


ROWS = [
    {
        "arm": arm,
        "metric": metric,
        "published_figure": figure,
        "published_protocol": estimate(0.9 - i / 50),
        "clean": estimate(0.82 - i / 50),
        "difference": estimate(0.08),
    }
    for metric, figure in (("accuracy", 0.9442), ("macro_f1", None))
    for i, arm in enumerate(("mobilenetv2", "efficientnet_b0", EVIL))
]
TESTS = {
    "pairs": [
        {
            "a": "mobilenetv2",
            "b": EVIL,
            "permutation_p": 0.004,
            "mcnemar": {
                "b": 30,
                "c": 12,
                "chi2": 7.7,
                "chi2_corrected": 6.9,
                "p": 0.0055,
                "exact_p": 0.008,
            },
            "difference": {"accuracy": estimate(0.04)},
            "paired_t": {
                "recall": {"t": None, "p": None, "degenerate": "the differences are constant"}
            },
        }
    ]
}


def test_comparison_of_runs(full_run: Path, tmp_path: Path) -> None:
    found = {"runs": [str(full_run)], "table": ROWS, "comparison": TESTS}
    written = comparison.write(tmp_path / "all", found)
    html = written.read_text(encoding="utf-8")
    reader = Reader(html)
    assert not reader.all("script")
    assert "94.4%" in html
    assert "+8.0 points [6.0, 10.0]" in html
    assert "the differences are constant" in html
    assert (tmp_path / "all" / "figures" / "arms_accuracy.svg").is_file()
    assert len(pd.read_csv(tmp_path / "all" / "figures" / "arms_accuracy.csv")) == 9


def test_comparison_without_one_protocol_and_without_tests(tmp_path: Path) -> None:
    rows = [{"arm": "a", "metric": "accuracy", "clean": estimate(0.8)}]
    html = comparison.write(tmp_path, {"runs": [], "table": rows}).read_text(encoding="utf-8")
    assert "not run" in html
    assert 'class="missing"' in html


ABSENT = {"value": None, "low": None, "high": None}
NOT_HERE = ABSENT | {"why": "not on this data"}


def paper_row(arm: str, metric: str, **other: Any) -> dict[str, Any]:
    both = {"published_protocol": estimate(0.9), "clean": estimate(0.82)}
    return {"arm": arm, "metric": metric, "published_figure": 0.95, **both,
            "difference": estimate(0.08), **other}  # fmt: skip


def mcnemar(chi2: float) -> dict[str, Any]:
    return {"b": 30, "c": 12, "chi2": chi2, "chi2_corrected": 6.9, "p": 0.0055, "exact_p": 0.008,
            "degenerate": None}  # fmt: skip


def reproduced(arms: int, metrics: int) -> dict[str, Any]:
    """reproduction.json of that size, every kind of gap in it."""
    names = [f"arm-{i}" for i in range(arms - 1)] + [EVIL]
    scalars = ["accuracy", "macro_f1", "cohen_kappa", "environment.seconds", "phases.1.accuracy"]
    scalars += [f"history.{i}.validation_accuracy" for i in range(1, 20)]
    skipped = {key: ABSENT | {"why": "not run: No weights"} for key in
               ("published_protocol", "clean", "difference")}  # fmt: skip
    rows = [paper_row(a, m) for a in names for m in scalars[:metrics]]
    rows += [paper_row("densenet", "accuracy", **skipped)]
    rows += [
        paper_row("arm-0", f"{where}.{metric}")
        for metric, where in (
            ("validation_loss", "history.2"),
            ("recall", "phases.1.per_class.Early Pre-B"),
        )
    ]
    gone = dict.fromkeys(("published_protocol", "clean", "difference"), NOT_HERE)
    for name, more in ((EVIL, {}), ("NPM1", gone)):
        rows += [paper_row("arm-0", f"per_class.{name}.{m}", **more)
                 for m in ("precision", "recall", "f1")]  # fmt: skip
    t = {"t": None, "p": None, "degenerate": "every difference is 0.04"}
    about = {"note": "t = infinity", "statistic": None, "p": 0.0}
    tests = [
        {"test": "paired_t", "a": "arm-0", "b": "arm-1", "metric": "accuracy", **about,
         "published_protocol": t, "clean": {"why": "arm-1 not run"}},
        {"test": "mcnemar", "a": "arm-0", "b": "arm-1", "statistic": 14.06, "p": 0.000176,
         "published_protocol": mcnemar(7.7), "clean": mcnemar(3.1)},
    ]  # fmt: skip
    pair = TESTS["pairs"][0]
    pairs = [pair | {"a": a, "b": b, "holm": {"permutation_p": 0.01}}
             for i, a in enumerate(names) for b in names[i + 1 :]]  # fmt: skip
    steps = [
        {"effect": "+ swa", "from": "arm-0", "to": "arm-1", "published_figure": 0.02,
         "published_protocol": estimate(0.01) | {"mcnemar": mcnemar(5.5)},
         "clean": ABSENT | {"why": "arm-1: not run"}},
    ]  # fmt: skip
    return {
        "runs": [],
        "not_run": [{"arm": "densenet", "protocol": "clean", "why": "No weights"}],
        "table": ROWS,
        "tables": [{"title": "Main", "classes": 5, "remark": "Another data set.", "rows": rows,
                    "tests": tests}],
        "tables_left_out": ["Two classes"],
        "ablation": {"kind": "cumulative", "metric": "accuracy", "effects": steps, "rows": [
            paper_row("arm-0", "accuracy", factors=[]),
            paper_row("arm-1", "accuracy", factors=["swa"], **skipped),
        ]},
        "comparison": {"pairs": pairs, "not_tested": [{"a": "x", "b": "y", "why": "none shared"}]},
        "comparison_published": {"pairs": pairs},
    }  # fmt: skip


def test_each_published_table_is_a_section(tmp_path: Path) -> None:
    written = comparison.write(tmp_path, reproduced(3, 2), title="Reproduction")
    reader = read(written)
    paper = text(reader, "paper-1")
    assert "Paper: Main" in paper
    assert "Another data set." in paper
    assert "95.0% 90.0% [88.0, 92.0] 82.0% [80.0, 84.0] +8.0 points [6.0, 10.0]" in paper
    assert "not run" in paper
    assert f"{EVIL}: paper 95.0% 95.0% 95.0%" in paper
    assert "NPM1: measured not on this data not on this data not on this data" in paper
    assert "by epoch. Epoch Validation loss Epoch 2: paper 0.950 Epoch 2: published 0.900" in paper
    assert "by class, after phase 1. Class Recall Early Pre-B: paper 95.0%" in paper
    assert "arm-0 against arm-1: t by class, Accuracy p 0 undefined" in paper
    assert "χ² 14.06, p 0.000176 χ² 7.7, p 0.0055 (30, 12)" in paper
    assert " 0.0%" not in paper, "what is absent is no zero"
    assert "No weights" in text(reader, "runs")
    assert "Two classes" in text(reader, "runs")
    assert "none shared" in text(reader, "tests")


def test_the_ablation_names_what_each_step_adds(tmp_path: Path) -> None:
    written = comparison.write(tmp_path, reproduced(3, 2))
    ablation = text(read(written), "ablation")
    assert "the clean protocol is above in 1 of 1 figure" in ablation
    assert "arm-0: no factor 95.0%" in ablation
    assert "+ swa +2.0 points +1.0 points [−1.0, 3.0] not run" in ablation
    assert "arm-1 against arm-0 χ² 5.5, p 0.0055 (30, 12) not run" in ablation
    assert (tmp_path / "figures" / "ablation.csv").is_file()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("macro_f1", "Macro F1"),
        ("per_class.a.b.recall", "a.b: Recall"),
        ("validation.log_loss", "Log loss on validation"),
        ("patient_level.accuracy", "Accuracy by patient"),
        ("phases.1.per_class.Pre-B.f1", "Pre-B: F1 after phase 1"),
        ("history.3.validation_accuracy", "Validation accuracy in epoch 3"),
        ("folds.macro_f1.mean", "Macro F1, mean over the folds"),
        ("environment.seconds", "Training time"),
    ],
)
def test_dotted_paths_have_names(path: str, name: str) -> None:
    assert numbers.title(path) == name


@pytest.mark.parametrize(
    ("path", "value", "written", "shift"),
    [
        ("environment.seconds", 20595.6, "20,596 s", "+20,596 s"),
        ("folds.cohen_kappa.mean", 0.5, "0.500", "+0.500"),
        ("folds.accuracy.sd", 0.02, "2.0%", "+2.0 points"),
        ("history.2.validation_loss", 0.25, "0.250", "+0.250"),
    ],
)
def test_figures_have_their_own_units(path: str, value: float, written: str, shift: str) -> None:
    assert numbers.plain(path, value) == written
    assert numbers.difference(path, value) == shift


def test_few_tables_are_open_however_many_arms_and_metrics(tmp_path: Path) -> None:
    for arms, metrics in ((10, 10), (2, 20), (10, 1)):
        built = reproduced(arms, metrics)
        reader = read(comparison.write(tmp_path, built))
        tables = [within for tag, _, within in reader.elements if tag == "table"]
        assert sum("details" not in within for within in tables) <= 20
        assert len(tables) >= 10 or metrics == 1
        assert text(reader, "paper-1").count("arm-0, by class. Class") == 1


# --- in a browser -----------------------------------------------------------------------------


OVERLAPPING = """() => {
  const found = [];
  const crossing = (r, q) => r.left < q.right - 1 && q.left < r.right - 1 && r.top < q.bottom - 2
    && q.top < r.bottom - 2;
  for (const svg of document.querySelectorAll('svg')) {
    const own = [...svg.querySelectorAll('text')]
      .filter(text => !/rotate\\(-?(?!0\\b)[0-9.]*[1-9]/.test(text.getAttribute('transform')));
    const boxes = own.map(text => text.getBoundingClientRect());
    boxes.forEach((box, i) => boxes.slice(i + 1).forEach((other, j) => {
      if (crossing(box, other)) found.push(own[i].textContent + ' / ' + own[i + 1 + j].textContent);
    }));
  }
  const parts = [...document.querySelectorAll('main p, main figcaption, main table, main .plots')]
    .filter(part => part.checkVisibility()).map(part => [part, part.getBoundingClientRect()]);
  for (let i = 1; i < parts.length; i++) {
    const [[a, above], [b, below]] = [parts[i - 1], parts[i]];
    if (!a.contains(b) && crossing(above, below)) found.push(b.textContent.slice(0, 40));
  }
  return found;
}"""  # level texts within a figure, and blocks of the page that follow each other


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_whole_and_asks_for_nothing(
    full_run: Path,
    full_html: str,  # noqa: ARG001 - writes the page
    width: int,
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("CHROMIUM ABSENT: install Debian's chromium to look at a report")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": width, "height": 900})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((full_run / "report.html").as_uri())
        too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        broken = page.evaluate(
            "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        )
        overlapping = page.evaluate(OVERLAPPING)
        chromium.close()
    assert too_wide <= 0
    assert not overlapping
    assert broken == 0
    assert not said
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
