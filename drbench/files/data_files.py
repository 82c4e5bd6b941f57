"""The files of data sets as items to fetch, add and verify, and whether a data set is here. No torch.

What the files are stands in benchmarks/datasets.yaml; loaders read them through `drbench.files.datasets`.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from drbench.errors import DrbenchError
from drbench.files import datasets, fetching, places
from drbench.files.fetching import Item

FACTS = ("url", "hub", "bytes", "sha256", "md5")  # of the manifest, that an `Item` has too


def folder(name: str) -> Path:
    """Where a data set belongs; the folder need not be there yet."""
    base = places.named(datasets.VARIABLE)
    if not base:
        raise DrbenchError(f"set {datasets.VARIABLE} to the folder that holds, or shall hold, the data sets")
    return base / datasets.entry(name).get("root", name)


def items(name: str, unpacked: bool = False) -> list[Item]:
    """Files that come from elsewhere; with `unpacked` also those that come out of an archive."""
    about, base = datasets.entry(name), folder(name)
    return [
        Item(name, base / file["path"], "data", **{key: file[key] for key in FACTS if key in file},
             where=" ".join(about.get(key, "") for key in ("where", "source")).strip(), licence=about["licence"])
        for file in about.get("files", [])
        if unpacked or "of" not in file
    ]  # fmt: skip


def layouts(name: str) -> list[str]:
    """Ways in which the files of a data set may lie; one is enough."""
    return list(dict.fromkeys(file["layout"] for file in datasets.entry(name).get("files", []) if "layout" in file))


def others(name: str, split: str) -> list[str]:
    """Data sets that a split is made with, besides its own."""
    return datasets.entry(name).get("with", {}).get(split.partition("/")[0], [])


def lacking(name: str, split: str, root: str | Path | None = None) -> str | None:
    """What of a data set is not here, in words; None if nothing is. Looks at names alone."""
    about = datasets.entry(name)
    if not about.get("files") and not about.get("trees") and "where" not in about:
        return None  # it comes with the installation
    try:
        base = places.path(root) if root is not None else folder(name)
    except DrbenchError as error:
        return str(error)
    files = [file for file in about.get("files", []) if not file.get("unpack")]
    always = [file["path"] for file in files if "layout" not in file]
    ways = [[file["path"] for file in files if file.get("layout") == layout] for layout in layouts(name)]
    trees = [tree["path"] for tree in about.get("trees", []) if tree["path"] == split or "splits" not in about
             or tree["path"] not in about["splits"]]  # fmt: skip
    wanted = [path for path in [*always, *trees] if not (base / path).exists()]
    if ways and not any(all((base / path).exists() for path in way) for way in ways):
        wanted.append(" or ".join(ways[0]) if len(ways) == 1 else f"a complete layout ({', '.join(layouts(name))})")
    if not base.is_dir():
        return f"no folder {base}"
    return f"{base} has no {', '.join(wanted)}" if wanted else None


def size(name: str) -> int | None:
    """Bytes of what `fetch` brings; None if it brings nothing, or its makers do not say."""
    found = [file.get("bytes") for file in _fetchable(name)]
    return sum(found) if found and None not in found else None


def command(name: str) -> str:
    """The line that brings a data set here, or the page to go to."""
    about = datasets.entry(name)
    return f"drbench data fetch {name}" if _fetchable(name) else about.get("where") or about.get("source", "")


def fetch(name: str, layout: str | None = None) -> list[Path]:
    """Bring the files of one layout here (by default of the first that has addresses), archives unpacked if need be."""
    found = []
    for item in _fetched(name, layout):
        fetching.fetch(item)
        found.append(item.path)
        _unpack(name, item)
    return found


def add(path: Path, name: str | None, *, link: bool = False) -> Path:
    """Take over a local file of a data set, recognised by its name."""
    if not path.is_file():
        hint = f": it is a folder; put it into that of its data set in {datasets.VARIABLE} by hand"
        raise DrbenchError(f"no file {path}{hint if path.is_dir() else ''}")
    known = [name] if name else [one for one, about in datasets.manifest().items() if about.get("files")]
    found = {item.path: item for one in known for item in items(one) if item.path.name == path.name}
    if name and not found:
        files = ", ".join(item.path.name for item in items(name)) or "none"
        raise DrbenchError(f"{path}: the files of data {name} are {files}; give it the name of the one that it is")
    if len(found) != 1:
        have = ", ".join(item.name for item in found.values())
        which = "no data set has" if not found else f"several data sets ({have}) have"
        raise DrbenchError(f"{path}: {which} a file {path.name!r}; say which with --name, see `drbench data list`")
    (item,) = found.values()
    fetching.add(item, path, link=link)
    _unpack(item.name, item)
    return item.path


def _fetched(name: str, layout: str | None) -> list[Item]:
    if layout is not None and layout not in layouts(name):
        raise DrbenchError(f"data {name} has the layouts {', '.join(layouts(name)) or 'none'}, not {layout!r}")
    paths = [folder(name) / file["path"] for file in _fetchable(name, layout)]
    if not paths:
        raise DrbenchError(f"data {name} cannot be fetched. {datasets.expected(name)}\n  folder: {folder(name)}")
    return [item for item in items(name) if item.path in paths]


def _fetchable(name: str, layout: str | None = None) -> list[dict]:
    """Files of a layout, or of the first one, that all have addresses; none if there is no such layout."""
    for way in [layout] if layout else layouts(name) or [None]:
        found = [file for file in datasets.entry(name).get("files", [])
                 if "of" not in file and file.get("layout") in (way, None)]  # fmt: skip
        if found and all("url" in file or "hub" in file for file in found):
            return found
    return []


def _unpack(name: str, item: Item) -> None:
    """Unpack an archive that loaders read unpacked, inside its own folder alone."""
    base = folder(name)
    file = next(file for file in datasets.entry(name)["files"] if base / file["path"] == item.path)
    if not file.get("unpack"):
        return
    try:
        if tarfile.is_tarfile(item.path):
            with tarfile.open(item.path) as archive:
                archive.extractall(base, filter="data")
            return
        with zipfile.ZipFile(item.path) as archive:
            outside = [one for one in archive.namelist() if not (base / one).resolve().is_relative_to(base.resolve())]
            if outside:
                raise DrbenchError(f"{item.path}: refused, it would write outside its folder: {outside[0]}")
            archive.extractall(base)
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise DrbenchError(f"{item.path} cannot be unpacked in {base}: {error}") from error
