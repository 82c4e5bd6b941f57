"""One file over https: capped, hashed while it streams, resumed only where it is certainly the same file. No torch.

Beside the unfinished file lies FILE.json with the address, the entity tag and the size that the server stated: without
the same three the download starts again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from drbench.errors import DrbenchError
from drbench.progress import Progress

MOST = 32 * 2**30  # bytes of a file whose size nobody stated
CHUNK, TIMEOUT = 2**20, 60.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Content(NamedTuple):
    """What a file holds."""

    bytes: int
    sha256: str
    md5: str


class _Digest:
    """Size and hashes of what was seen so far, and whether it looks like a web page."""

    def __init__(self) -> None:
        self.bytes, self.sha256, self.md5, self.first = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False), b""

    def update(self, chunk: bytes) -> None:
        self.first = self.first or chunk[:512]
        self.bytes += len(chunk)
        self.sha256.update(chunk)
        self.md5.update(chunk)

    def content(self) -> Content:
        if self.first.lstrip().startswith(b"<"):
            raise DrbenchError("it is a web page, not the file: a quota, log-in or confirmation page")
        return Content(self.bytes, self.sha256.hexdigest(), self.md5.hexdigest())


def inspect(path: Path) -> Content:
    """Size and hashes of a local file; a web page is refused."""
    try:
        return _digest(path).content()
    except OSError as error:
        raise DrbenchError(f"{path} cannot be read: {error.strerror}") from error


def download(url: str, partial: Path, size: int | None = None, most: int = MOST, *, loopback: bool = False) -> Content:
    """Bring `url` to `partial`, going on where an earlier call stopped.

    Parameters
    ----------
    size : int, optional
        Bytes that the file must have.
    most : int
        Bytes that it may have where `size` is not known.
    loopback : bool
        Also accept http from this machine: for tests.

    Raises `DrbenchError` with the reason; what was received stays for the next call, unless it is of no use.
    """
    _check(url, loopback)
    memo = Path(f"{partial}.json")
    known = _read(memo) if partial.exists() else {}
    known = known if known.get("url") == url else {}
    done = _digest(partial) if known else _Digest()
    if not known or done.bytes != known["bytes"]:  # else it was killed right after its last byte
        try:
            done = _receive(url, partial, memo, known, done, size, most, loopback)
        except HTTPError as error:
            raise DrbenchError(f"{url} answers {error.code} {error.reason}") from error
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise DrbenchError(f"{url} cannot be reached, or broke off ({reason}); the same command goes on") from error
    try:
        content = done.content()
    except DrbenchError:
        partial.unlink()
        raise
    finally:
        memo.unlink(missing_ok=True)
    return content


def _receive(url, partial, memo, known: Mapping, done: _Digest, size, most, loopback) -> _Digest:
    headers = {"User-Agent": "drbench", "Accept-Encoding": "identity"}
    if done.bytes:
        headers |= {"Range": f"bytes={done.bytes}-", "If-Range": known["etag"]}
    with build_opener(_Redirects(loopback)).open(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        stated = {"url": url, "etag": answer.headers.get("ETag", ""), "bytes": _total(answer)}
        if answer.status == 206 and stated != known:
            again = True
        else:
            again, done = False, done if answer.status == 206 else _Digest()
            limit = _limit(stated["bytes"], size, most)
            # A weak tag, or none, does not promise the same bytes: such a download cannot be resumed.
            strong = stated["etag"].startswith('"') and stated["bytes"] is not None
            memo.write_text(json.dumps(stated)) if strong else memo.unlink(missing_ok=True)
            _stream(answer, partial, done, limit)
    if again:
        return _receive(url, partial, memo, {}, _Digest(), size, most, loopback)
    if stated["bytes"] is not None and done.bytes < stated["bytes"]:
        raise DrbenchError(f"{url} broke off at {done.bytes:,} of {stated['bytes']:,} bytes; the same command goes on")
    return done


def _stream(answer, partial: Path, done: _Digest, limit: int) -> None:
    total = (answer.length or 0) + done.bytes
    with (
        open(partial, "ab" if done.bytes else "wb") as file,
        Progress(partial.name, max(1, total >> 20), "MiB", done.bytes >> 20) as bar,
    ):
        while chunk := answer.read(CHUNK):
            before = done.bytes >> 20
            done.update(chunk)
            if done.bytes > limit:
                partial.unlink()
                Path(f"{partial}.json").unlink(missing_ok=True)
                raise DrbenchError(f"it is larger than {limit:,} bytes, which it must not be")
            file.write(chunk)
            for _ in range((done.bytes >> 20) - before):
                bar.advance(str)
        file.flush()
        os.fsync(file.fileno())


def _limit(stated: int | None, size: int | None, most: int) -> int:
    if size is not None and stated not in (None, size):
        raise DrbenchError(f"the server offers {stated:,} bytes, expected {size:,}: it is another file")
    if size is None and stated is not None and stated > most:
        raise DrbenchError(f"the server offers {stated:,} bytes, more than the {most:,} that are allowed")
    return size or most


def _total(answer) -> int | None:
    """Size of the whole file as the server states it."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    return answer.length


def _digest(path: Path) -> _Digest:
    done = _Digest()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            done.update(chunk)
    return done


def _read(memo: Path) -> dict:
    try:
        return json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}


def _check(url: str, loopback: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (loopback and parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise DrbenchError(f"{url}: expected an address that begins with https://")


class _Redirects(HTTPRedirectHandler):
    """Redirects stay on https."""

    def __init__(self, loopback: bool) -> None:
        self.loopback = loopback

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check(newurl, self.loopback)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
