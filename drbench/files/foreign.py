"""Weights that do not ship with the project: benchmarks/foreign.yaml, and where they lie. No torch.

    <weights folder>/files/FILE         as others made it
    <weights folder>/NAME.safetensors   the same under our names, or what a command made

A config names them like those that ship: `checkpoint: [openai/cifar10-uncond-50M]`.
"""

from __future__ import annotations

from pathlib import Path

from drbench.errors import DrbenchError, did_you_mean
from drbench.files import fetching, places
from drbench.files.fetching import Item

FACTS = ("url", "hub", "bytes", "sha256", "where", "licence")  # of the manifest, that an `Item` has too


def manifest() -> dict[str, dict]:
    """name -> entry, see the head of the file."""
    return places.manifest("foreign.yaml")


def entry(name: str) -> dict:
    """One entry; an unknown name is an error with near misses."""
    known = manifest()
    if name not in known:
        raise DrbenchError(f"no weights {name!r} in benchmarks/foreign.yaml{did_you_mean(name, known)}")
    return known[name]


def item(name: str) -> Item:
    """The file as others made it."""
    about = entry(name)
    if "make" in about:
        raise DrbenchError(f"weights {name} are not fetched but made: {about['make']}")
    facts = {key: about[key] for key in FACTS if key in about}
    return Item(name, places.weights_folder() / "files" / about["file"], **facts)


def own(name: str) -> Item:
    """The file that defenses read."""
    return Item(name, places.weights_folder() / f"{name}.safetensors")


def present(name: str) -> bool:
    """Whether defenses can read it; its hash is not checked."""
    return own(name).path.is_file()


def fetchable(name: str) -> bool:
    """Whether one command brings it here."""
    return "make" in entry(name) or item(name).path.is_file() or item(name).fetchable


def advice(name: str) -> str:
    """How to get what is not there."""
    about = entry(name)
    if "make" in about:
        return f"  goes to:  {own(name).path}\n  here:     {about['make']}"
    if item(name).path.is_file():
        return f"  here:     drbench weights convert {name}"
    return fetching.advice(item(name))


def command(name: str) -> str:
    """The line that makes it present."""
    about = entry(name)
    if "make" in about:
        return about["make"]
    return f"drbench weights convert {name}" if item(name).path.is_file() else item(name).command


def by_file(path: Path) -> str:
    """Name of the entry that a local file is for, by its file name."""
    if not path.is_file():
        raise DrbenchError(f"no file {path}")
    names = [name for name, about in manifest().items() if Path(about.get("file", "")).name == path.name]
    if len(names) != 1:
        raise DrbenchError(f"{path}: {'no' if not names else 'more than one'} entry of benchmarks/foreign.yaml has a "
                           f"file {path.name!r}; say which with --name, see `drbench weights list`")  # fmt: skip
    return names[0]
