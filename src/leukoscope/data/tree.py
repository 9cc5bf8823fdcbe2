"""A folder of images as a list of files: links in a circle, hidden and system files cope with."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from leukoscope.errors import InputError
from leukoscope.imaging.read import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Tree:
    """What lies under `src`: image files relative to it, sorted, and the keys of all folders."""

    src: Path
    files: tuple[PurePath, ...]
    folders: frozenset[str]

    def share(self, pattern: str) -> float:
        """The share of the images whose file name matches, 0 to 1; 0 where there is none."""
        found = sum(bool(re.fullmatch(pattern, file.name, re.IGNORECASE)) for file in self.files)
        return found / len(self.files) if self.files else 0.0


def scan(src: Path) -> Tree:
    """List `src`; a file has an empty tree. InputError where nothing is there.

    Only suffixes are looked at; whether a file is an image is found out when it is read.
    """
    if not os.path.exists(src):  # noqa: PTH110 - Path.exists raises on names that are too long
        raise InputError(f"There is no file or folder {src}", fix="Check the path.", field="src")
    files: list[PurePath] = []
    folders: set[str] = set()
    if src.is_dir():
        for folder, names in _walk(src):
            folders.update(key(part) for part in folder.relative_to(src).parts)
            files += [(folder / name).relative_to(src) for name in names]
    return Tree(src, tuple(sorted(files)), frozenset(folders))


def find_images(given: Sequence[str | Path]) -> list[Path]:
    """The files behind paths, folders (all images below them) and globs, sorted, each once.

    A file named itself is taken whatever its suffix. Raises InputError where nothing is found.
    """
    found: dict[Path, None] = {}
    for item in given:
        path = Path(item)
        # os.path, because pathlib raises on names that are too long.
        if os.path.isdir(path):  # noqa: PTH112
            found |= dict.fromkeys(path / file for file in scan(path).files)
        elif os.path.lexists(path):
            found[path] = None
        else:
            matches = sorted(glob.glob(str(item), recursive=True))  # noqa: PTH207 - absolute too
            if not matches:
                raise InputError(
                    f"Nothing at {str(item)!r}: no file, folder or match",
                    fix="Give images, folders of images, or a glob such as 'smear/*.jpg'.",
                    field="path",
                )
            found |= dict.fromkeys(find_images(matches)) if matches != [str(item)] else {}
    if not found:
        raise InputError(
            f"No images in {', '.join(map(str, given)) or 'nothing'}",
            fix=f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}.",
            field="path",
        )
    return list(found)


def _walk(src: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder once with its image files; links are followed, circles are not."""
    waiting, visited = [src], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as problem:
            raise InputError(
                f"Can't list the folder {folder}: {problem.strerror}",
                fix="Make it readable or move it out of the way.",
                field="src",
            ) from None
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        visible = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
        waiting += [folder / e.name for e in reversed(visible) if _is_folder(e)]
        yield folder, [e.name for e in visible if _has_suffix(e.name) and not _is_folder(e)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except OSError:  # a dangling link, or one in a circle
        return False


def _has_suffix(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def key(name: str) -> str:
    """A folder's name without case, spaces and punctuation: `[Malignant] Pre-B`, `pre_b`."""
    return re.sub(r"[\W_]+", "", name.lower())
