"""The list of a checkpoint's files, written once all of them are on disk: a folder that has it is whole. No torch."""

import json
import os
from pathlib import Path

SEAL_FILE = "files.json"
"""Size in bytes of each file of the folder, by its path."""


def seal(folder: Path) -> None:
    """Bring every file of `folder` to the disk, then list them; the list appears whole or not at all."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        _sync(path)
    unfinished = folder / f".{SEAL_FILE}"
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    unfinished.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    _sync(unfinished)
    unfinished.replace(folder / SEAL_FILE)
    # A new name is on disk only once the folder is.
    for place in (folder, folder.parent):
        _sync(place)


def is_sealed(folder: Path) -> bool:
    """Whether `folder` was whole at some time."""
    return (folder / SEAL_FILE).is_file()


def damage(folder: Path) -> str | None:
    """The first file of a sealed `folder` that is gone or has another size than it had, in words; None if all is well.

    What changed within a file is not seen: reading a large checkpoint twice would take minutes.
    """
    try:
        sizes: dict[str, int] = json.loads((folder / SEAL_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return f"{SEAL_FILE} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return None


def _sync(path: Path) -> None:
    """Wait until what was written to `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
