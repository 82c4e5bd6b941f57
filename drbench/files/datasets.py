"""What data sets there are and which files they are made of: `benchmarks/datasets.yaml`. No torch.

Loaders ask here where files lie, check them, and say in their errors what belongs where. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from drbench.errors import DrbenchError, did_you_mean
from drbench.files import places

VARIABLE = "DRBENCH_DATA"
HASHED_AT_LOAD = 256 * 2**20  # bytes; of larger files a load checks only the size


def manifest() -> dict[str, dict]:
    """name -> entry; the top of the file documents the keys."""
    found = places.manifest("datasets.yaml")
    if not found:
        raise DrbenchError(
            "no benchmarks/datasets.yaml: drbench runs from a checkout; set DRBENCH_HOME to the folder above benchmarks"
        )
    return found


def entry(name: str) -> dict:
    """Manifest entry of a data set."""
    if name not in manifest():
        raise DrbenchError(f"unknown data set {name!r}{did_you_mean(name, manifest())}")
    return manifest()[name]


def count(name: str, split: str) -> int | None:
    """How many images a split has; None if nobody says. All CORRUPTION/SEVERITY have as many."""
    splits = entry(name).get("splits", {})
    return splits.get(split, splits.get("CORRUPTION/SEVERITY"))


def folder(name: str, root: str | Path | None) -> Path:
    """Folder of a data set's files: `root` if given, or the data set's sub-folder of DRBENCH_DATA."""
    inside, base = entry(name).get("root", name), places.named(VARIABLE)
    if root is None and not base:
        own = "data.root, the folder of its files, or " if "classes" in entry(name) else ""
        raise DrbenchError(
            f"data {name!r} needs {own}{VARIABLE}, a folder with the sub-folder {inside}; nothing is downloaded."
            f"{expected(name)}"
        )
    found = places.path(root) if root is not None else base / inside
    if not found.is_dir():
        by = "data.root" if root is not None else f"{VARIABLE}={base}"
        raise DrbenchError(f"data {name!r}: no folder {found} ({by}).{expected(name)}")
    return found


def expected(name: str) -> str:
    """What must be in the folder of a data set, in words: files with sizes and hashes, folders, and how to get them."""
    facts = entry(name)
    groups: dict[str, list[str]] = {}
    for file in facts.get("files", []):
        if "of" not in file:
            groups.setdefault(file.get("layout", ""), []).append(describe(file))
    trees = [f"{tree['path']}/ with {tree['folders']:,} folders and {tree['files']:,} images"
             for tree in facts.get("trees", [])]  # fmt: skip
    lines = [f"{layout + ': ' if layout else ''}{', '.join(files)}" for layout, files in groups.items()] + trees
    text = "\nExpected in it:" + "".join(f"\n  {line}" for line in lines) if lines else "\nExpected:"
    return "\n".join([text, *(facts[key] for key in ("where", "source") if key in facts)])


def describe(file: dict) -> str:
    """A file of the manifest with what is known of it, e.g. "a.npy (8,212 bytes, sha256 1f95...)"."""
    size = [f"{file['bytes']:,} bytes"] if "bytes" in file else []
    known = size + [f"{kind} {file[kind]}" for kind in ("sha256", "md5") if kind in file][:1]
    return f"{file['path']} ({', '.join(known)})" if known else file["path"]


def missing(name: str, where: Path, what: str) -> DrbenchError:
    """The error of a data set whose folder lacks something."""
    return DrbenchError(f"data {name!r}: {where} has no {what}.{expected(name)}")


def check(name: str, where: Path, path: str, everything: bool = False) -> Path:
    """A file of a data set, after a look at its size and, unless it is large, its hash.

    Parameters
    ----------
    where : Path
        Folder of the data set.
    path : str
        As in the manifest; a file that is not in it is only looked for.
    everything : bool
        Hash large files too, and by every hash that is known.
    """
    full = where / path
    if not full.is_file():
        raise missing(name, where, f"file {path}")
    file = next((file for file in entry(name).get("files", []) if file["path"] == path), {})
    size = full.stat().st_size
    if file.get("bytes", size) != size:
        raise DrbenchError(
            f"{full}: expected {file['bytes']:,} bytes, got {size:,}: truncated or another file; get it again"
        )
    if not everything and size > HASHED_AT_LOAD:
        return full
    for kind in [kind for kind in ("sha256", "md5") if kind in file][: None if everything else 1]:
        if (actual := digest(full, kind)) != file[kind]:
            raise DrbenchError(
                f"{full}: expected {kind} {file[kind]}, got {actual}: damaged, or not the published file; get it again"
            )
    return full


def digest(path: Path, kind: str) -> str:
    """Hash of a file, "sha256" or "md5", without holding it in memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
