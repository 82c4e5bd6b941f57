"""Files of others: where they should lie, how they get there, whether they are what they should be. No torch.

A file whose hash nobody stated is trusted on first use: the hash that `fetch` or `add` saw is kept beside it, in
FILE.json, and the file must keep it. Only `fetch` uses the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from drbench.errors import DrbenchError
from drbench.files import download
from drbench.files.download import Content


@dataclass(frozen=True)
class Item:
    """A file that somebody else made.

    Parameters
    ----------
    name : str
        For `drbench VERB fetch NAME`; `verb` is weights or data.
    path : Path
        Where it should lie.
    url, hub : str, mapping
        Where it is: an https address, or {repo, file, revision, type} of the Hugging Face hub. Neither: see `where`.
    bytes, sha256, md5 : int, str, str
        As far as its makers state them.
    """

    name: str
    path: Path
    verb: str = "weights"
    url: str | None = None
    hub: Mapping[str, str] | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    where: str = ""
    licence: str = ""

    @property
    def memo(self) -> Path:
        return Path(f"{self.path}.json")

    @property
    def source(self) -> str:
        """Where to get it, in words."""
        if self.hub:
            return f"{self.hub_page}/blob/{self.hub.get('revision') or 'main'}/{self.hub['file']}"
        return self.url or self.where or "no public source is known"

    @property
    def hub_page(self) -> str:
        kind = "datasets/" if self.hub.get("type") == "dataset" else ""
        return f"https://huggingface.co/{kind}{self.hub['repo']}"

    @property
    def fetchable(self) -> bool:
        return bool(self.url or self.hub)

    @property
    def command(self) -> str:
        """The line that brings it here."""
        if self.fetchable:
            return f"drbench {self.verb} fetch {self.name}{self._revision()}"
        return f"drbench {self.verb} add FILE --name {self.name}"

    def _revision(self) -> str:
        return " --revision COMMIT" if self.hub and not self.hub.get("revision") else ""


class Seen(NamedTuple):
    """What is known of a file that lies where it should."""

    content: Content
    source: str
    trust: str  # "manifest": its makers state the hash | "first use": the hash of the file that came first


def seen(item: Item) -> Seen | None:
    """What was noted when the file came; None if it never did."""
    try:
        raw = json.loads(item.memo.read_text(encoding="utf-8"))
        return Seen(Content(int(raw["bytes"]), raw["sha256"], raw["md5"]), raw["source"], raw["trust"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DrbenchError(f"{item.memo}: not readable ({error}); delete it and add the file again") from error


def state(item: Item) -> str:
    """ "present", "not here", or "present, but ...", from sizes alone: `verify` reads the file."""
    if not item.path.is_file():
        return "not here"
    size, known = item.path.stat().st_size, seen(item)
    expected = known.content.bytes if known else item.bytes
    if expected not in (None, size):
        return f"present, but {size:,} bytes instead of {expected:,}"
    return "present" if known else "present, never checked"


def fetch(item: Item, revision: str | None = None, *, loopback: bool = False) -> Seen:
    """Bring the file here, unless it is; `revision` is the commit of a hub that the manifest does not pin.

    Killed at any moment, the next call goes on; of several at once one does the work and the others wait for it.
    """
    try:
        with _locked(item):
            if item.path.exists():
                return _settle(item, item.path, "found in its place")
            if item.hub:
                return _from_hub(item, revision)
            if not item.url:
                raise DrbenchError("it cannot be fetched")
            partial = Path(f"{item.path}.partial")
            content = download.download(item.url, partial, item.bytes, loopback=loopback)
            return _settle(item, partial, item.url, content)
    except DrbenchError as error:
        raise DrbenchError(f"{item.verb} {item.name}: {error}\n{advice(item)}") from error


def add(item: Item, path: Path, *, link: bool = False) -> Seen:
    """Take a local file over: checked, then copied, or with `link` a symbolic link is made."""
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise DrbenchError(f"{item.verb} {item.name}: no file {path} that can be read")
    try:
        with _locked(item):
            if path.resolve() == item.path.parent.resolve() / item.path.name:  # a link to itself would be its end
                return _settle(item, item.path, "found in its place")
            if link:
                content = download.inspect(path)
                _check(item, content)
                with tempfile.TemporaryDirectory(dir=item.path.parent) as folder:
                    made = Path(folder) / "link"
                    made.symlink_to(path.resolve())
                    return _settle(item, made, str(path), content)
            partial = Path(f"{item.path}.{os.getpid()}.partial")
            try:
                shutil.copyfile(path, partial)
                return _settle(item, partial, str(path))
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(item, error) from error
    except DrbenchError as error:
        raise DrbenchError(f"{item.verb} {item.name}: {path}: {error}") from error


def verify(item: Item) -> Seen:
    """Read the file and compare it with all that is known of it; `DrbenchError` says what is wrong."""
    if not item.path.is_file():
        raise DrbenchError(f"{item.verb} {item.name} is not here\n{advice(item)}")
    try:
        content = download.inspect(item.path)
        trust = _check(item, content)
    except DrbenchError as error:
        raise DrbenchError(f"{item.verb} {item.name}: {item.path}: {error}") from error
    known = seen(item)
    return Seen(content, known.source if known else "found in its place", trust)


def advice(item: Item) -> str:
    """Which file, how large, with which hash, where to get it, where to put it, and the command that does it."""
    known = seen(item)
    size = item.bytes or (known and known.content.bytes)
    sha256 = item.sha256 or (known and known.content.sha256)
    hashes = [f"sha256 {sha256}"] if sha256 else [f"md5 {item.md5}"] if item.md5 else ["hash not stated by its makers"]
    lines = [
        f"file:     {item.path.name}, {f'{size:,} bytes' if size else 'size not stated'}, {hashes[0]}",
        f"from:     {item.source}" + (f"; {item.where}" if item.where and item.fetchable else ""),
        f"goes to:  {item.path}",
    ]
    if item.fetchable:
        lines.append(f"here:     {item.command}")
    lines.append(f"or, once you have it: drbench {item.verb} add FILE --name {item.name}")
    return "\n".join(f"  {line}" for line in lines)


def _from_hub(item: Item, revision: str | None) -> Seen:
    revision = item.hub.get("revision") or revision
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise DrbenchError(
            f"expected --revision with the 40 digits of a commit, got {revision!r}: a branch may change; choose one at "
            f"{item.hub_page}/commits/main"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:  # into a folder of ours, so that nothing is kept twice; the hub's client resumes by itself
        folder = Path(f"{item.path}.hub")
        place = {"repo_type": item.hub.get("type", "model"), "revision": revision, "local_dir": folder}
        got = hf_hub_download(item.hub["repo"], item.hub["file"], **place)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DrbenchError(f"the hub did not give it: {str(error).splitlines()[0]}") from error
    found = _settle(item, Path(got), f"{item.hub_page}/blob/{revision}/{item.hub['file']}")
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _settle(item: Item, path: Path, source: str, content: Content | None = None) -> Seen:
    """Move a file that is right to its place, and note what it is; one that is not right is deleted, if it is ours."""
    try:
        content = content or download.inspect(path)
        trust = _check(item, content)
    except DrbenchError:
        if path != item.path:
            path.unlink(missing_ok=True)
        raise
    found = Seen(content, source, trust)
    if path != item.path:
        os.replace(path, item.path)
    if seen(item) is None or path != item.path:
        _write(item, found)
    return found


def note(item: Item, source: str) -> Seen:
    """Remember what a file of our own making holds, whatever was there before."""
    found = Seen(download.inspect(item.path), source, "first use")
    _write(item, found)
    return found


def _write(item: Item, found: Seen) -> None:
    partial = Path(f"{item.memo}.{os.getpid()}.partial")
    facts = {**found.content._asdict(), "source": found.source, "trust": found.trust}
    partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, item.memo)


def _check(item: Item, content: Content) -> str:
    """How the content is trusted; raises if it is another file."""
    known = seen(item)
    stated = {"bytes": item.bytes, "sha256": item.sha256, "md5": item.md5}
    for name, value in stated.items():
        if value is not None and getattr(content, name) != value:
            raise DrbenchError(
                f"{name} is {getattr(content, name)}, expected {value}: the file is damaged, or another one"
            )
    if item.sha256 or item.md5:
        return "manifest"
    if known and known.content.sha256 != content.sha256:
        raise DrbenchError(
            f"sha256 is {content.sha256}, but the file that came first ({known.source}) had {known.content.sha256}; "
            f"if you want this one instead, delete {item.memo}"
        )
    return "first use"


def locked(path: Path) -> contextlib.AbstractContextManager:
    """Until its end no other process comes past a call with the same path."""
    from filelock import FileLock

    return FileLock(f"{path}.lock")


@contextlib.contextmanager
def _locked(item: Item) -> Iterator[None]:
    try:
        item.path.parent.mkdir(parents=True, exist_ok=True)
        if item.path.is_dir():
            raise DrbenchError(f"{item.path} is a folder, where a file belongs; remove it")
        with locked(item.path):
            yield
    except OSError as error:
        raise _unwritable(item, error) from error


def _unwritable(item: Item, error: OSError) -> DrbenchError:
    variable = {"weights": "DRBENCH_WEIGHTS", "data": "DRBENCH_DATA"}[item.verb]
    return DrbenchError(
        f"cannot write to {item.path.parent}: {error.strerror or error}; name a folder that you may write to, with "
        f"enough room, in {variable}"
    )
