"""What the tools of the supply chain said, made ready: `sbom FILE` and `audit FILE`."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "serve", "fast")
VENDOR = ROOT / "src" / "leukoscope" / "review" / "static" / "vendor"


def sbom(path: Path) -> str:
    """Leave in a CycloneDX file what is passed on, not the developers' tools, and htmx with it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bom = json.loads(path.read_text("utf-8"))
    known = {_key(component["name"]): component for component in bom["components"]}
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    direct = [known[name]["bom-ref"] for name in _direct() if name in known]
    kept, todo = set(), list(direct)
    while todo:
        ref = todo.pop()
        todo += [other for other in needs.get(ref, []) if other not in kept]
        kept.add(ref)
    htmx = _htmx()
    root = bom["metadata"]["component"]["bom-ref"]
    bom["components"] = [c for c in bom["components"] if c["bom-ref"] in kept] + [htmx]
    bom["dependencies"] = [d for d in bom["dependencies"] if d["ref"] in kept] + [
        {"ref": root, "dependsOn": sorted([*direct, htmx["bom-ref"]])},
        {"ref": htmx["bom-ref"]},
    ]
    text = json.dumps(bom, indent=2)
    version = SchemaVersion.from_version(bom["specVersion"])
    fault = JsonStrictValidator(version).validate_str(text)
    if fault is not None:
        sys.exit(f"{path} is no CycloneDX {bom['specVersion']}: {fault}")
    path.write_text(text + "\n", "utf-8")
    return f"{path}: CycloneDX {bom['specVersion']}, {len(bom['components'])} components."


def _direct() -> list[str]:
    """What pyproject.toml asks for, developers' tools aside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in EXTRAS)]
    return [_key(re.split(r"[\[<>=;! ]", line)[0]) for lines in lists for line in lines]


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _htmx() -> dict[str, Any]:
    (script,) = VENDOR.glob("htmx-*.js")
    version = script.name.removeprefix("htmx-").removesuffix(".min.js")
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    purl = f"pkg:npm/htmx.org@{version}"
    return {
        "bom-ref": purl, "type": "library", "name": "htmx.org", "version": version, "purl": purl,
        "licenses": [{"license": {"id": "0BSD", "acknowledgement": "declared"}}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }  # fmt: skip


def audit(path: Path) -> str:
    """Known vulnerabilities; where no package could be looked up, that, and never "none"."""
    found = json.loads(path.read_text("utf-8"))["dependencies"] if path.is_file() else []
    judged = [package for package in found if "skip_reason" not in package]
    if not judged:
        return "NOT AUDITED: the advisory service can't be reached from here. Run this online."
    bad = [f"{p['name']} {p['version']}: {v['id']}" for p in judged for v in p["vulns"]]
    if bad:
        sys.exit("Known vulnerabilities: " + "; ".join(bad))
    left = f", {len(found) - len(judged)} not looked up" if len(found) > len(judged) else ""
    return f"No known vulnerability in {len(judged)} packages{left}."


if __name__ == "__main__":
    print({"sbom": sbom, "audit": audit}[sys.argv[1]](Path(sys.argv[2])))
