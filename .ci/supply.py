"""The supply chain, between the tools of the Makefile: `core`, `sbom FILE` and `audit FILE`."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import deque
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "serve", "fast")  # dev isn't passed on
VENDOR = ROOT / "src" / "leukoscope" / "review" / "static" / "vendor"


def core() -> dict[str, Distribution]:
    """Every installed distribution that leukoscope with its extras for users draws in, by name."""
    from packaging.requirements import Requirement

    found: dict[str, Distribution] = {}
    todo = deque([Requirement(f"leukoscope[{','.join(EXTRAS)}]")])
    seen = set()
    while todo:
        wanted = todo.popleft()
        name, extras = _key(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # `make demo` installs no `fast`
            continue
        for line in found[name].requires or []:
            needed = Requirement(line)
            held = [{"extra": extra} for extra in extras or {""}]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in held):
                todo.append(needed)
    return found


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sbom(path: Path, names: set[str]) -> str:
    """Leave in a CycloneDX file the packages of these names alone, and add htmx."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bom = json.loads(path.read_text("utf-8"))
    root = bom["metadata"]["component"]["bom-ref"]
    components = [c for c in bom["components"] if _key(c["name"]) in names] + [_htmx()]
    kept = {component["bom-ref"] for component in components} | {root}
    needs = {entry["ref"]: set(entry.get("dependsOn", [])) for entry in bom["dependencies"]}
    needs[root] = needs.get(root, set()) | {components[-1]["bom-ref"]}
    bom["components"] = components
    bom["dependencies"] = [
        {"ref": ref, "dependsOn": sorted(needs.get(ref, set()) & kept)} for ref in sorted(kept)
    ]
    text = json.dumps(bom, indent=2)
    version = SchemaVersion.from_version(bom["specVersion"])
    fault = JsonStrictValidator(version).validate_str(text)
    if fault is not None:
        sys.exit(f"{path} is no CycloneDX {bom['specVersion']}: {fault}")
    path.write_text(text + "\n", "utf-8")
    return f"{path}: CycloneDX {bom['specVersion']}, {len(components)} components."


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


def main() -> str:
    if sys.argv[1] == "core":
        return "\n".join(sorted(core()))
    path = Path(sys.argv[2])
    return audit(path) if sys.argv[1] == "audit" else sbom(path, set(sys.stdin.read().split()))


if __name__ == "__main__":
    print(main())
