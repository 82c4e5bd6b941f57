"""What `drbench weights` and `drbench data` do, as lines of text. No torch, except for conversion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from drbench.checkpoints import formats
from drbench.errors import DrbenchError
from drbench.files import data_files, datasets, fetching, foreign
from drbench.files.fetching import Item


def weights(
    action: str, names: Sequence[str], name: str | None = None, revision: str | None = None, link: bool = False
) -> Iterator[str]:
    """list | fetch NAME… | add FILE… | convert NAME… | verify [NAME…]; what came is converted at once."""
    if action == "list":
        yield from _columns([("NAME", "SIZE", "SHA256", "STATE", "PLACE"), *map(_weights_row, foreign.manifest())])
    elif action == "add":
        for path in _some(names, "a file"):
            entry = name or foreign.by_file(Path(path))
            yield _seen(foreign.item(entry), fetching.add(foreign.item(entry), Path(path), link=link))
            yield from _converted(entry)
    elif action == "verify":
        here = names or [one for one in foreign.manifest() if foreign.present(one)]
        yield from _verified(foreign.own(one) if foreign.present(one) else foreign.item(one) for one in here)
    else:
        for entry in _some(names, "a name of `drbench weights list`"):
            if action == "fetch":
                yield _seen(foreign.item(entry), fetching.fetch(foreign.item(entry), revision))
            yield from _converted(entry)


def data(
    action: str, names: Sequence[str], name: str | None = None, layout: str | None = None, link: bool = False
) -> Iterator[str]:
    """list | fetch NAME… | add FILE… | verify [NAME…]"""
    if action == "list":
        yield from _columns([("NAME", "SIZE", "STATE", "TITLE"), *map(_data_row, datasets.manifest())])
    elif action == "add":
        for path in _some(names, "a file"):
            yield str(data_files.add(Path(path), name, link=link))
    elif action == "fetch":
        for entry in _some(names, "a name of `drbench data list`"):
            for path in data_files.fetch(entry, layout):
                yield str(path)
    else:
        known, found = [one for one, about in datasets.manifest().items() if about.get("files")], []
        for entry in names or known:
            here = [item for item in data_files.items(entry, unpacked=True) if item.path.is_file()]
            if names and not here:
                raise DrbenchError(
                    f"data {entry}: no file to verify in {data_files.folder(entry)}.{datasets.expected(entry)}"
                )
            found += here
        yield from _verified(found)


def _verified(items: Iterable[Item]) -> Iterator[str]:
    count = 0
    for item in items:
        yield _seen(item, fetching.verify(item))
        count += 1
    yield f"{count} file{'s' * (count != 1)} verified"


def _some(names: Sequence[str], what: str) -> Sequence[str]:
    if not names:
        raise DrbenchError(f"expected {what}")
    return names


def _converted(name: str) -> Iterator[str]:
    if "format" in foreign.entry(name):
        yield str(formats.convert_listed(name))
    else:
        yield f"{name}: no defense of this version reads this file: it was not converted"


def _seen(item: Item, found: fetching.Seen) -> str:
    trust = "as its makers state" if found.trust == "manifest" else "trusted on first use"
    return f"{item.path} sha256 {found.content.sha256} ({trust})"


def _weights_row(name: str) -> tuple[str, ...]:
    about, own = foreign.entry(name), foreign.own(name)
    if "make" in about:
        state = "present" if foreign.present(name) else "to be made"
        return name, _size(own, None), _short(own, None), state, str(own.path)
    item = foreign.item(name)
    here = fetching.state(item)
    state = "present" if foreign.present(name) else "not converted" if here == "present" else here
    return name, _size(item, item.bytes), _short(item, item.sha256), state, str(item.path)


def _data_row(name: str) -> tuple[str, ...]:
    about, size = datasets.entry(name), data_files.size(name)
    absent = data_files.lacking(name, "")
    return name, f"{size:,}" if size else "-", "not here" if absent else "present", about["title"]


def _size(item: Item, stated: int | None) -> str:
    known = fetching.seen(item)
    size = stated or (known and known.content.bytes)
    return f"{size:,}" if size else "-"


def _short(item: Item, stated: str | None) -> str:
    known = fetching.seen(item)
    return f"{stated[:12]}" if stated else f"{known.content.sha256[:12]} first use" if known else "-"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
