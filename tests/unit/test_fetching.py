"""Files of others: every way in which a download or a local file may be wrong, against a server on this machine."""

import contextlib
import hashlib
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from drbench.errors import DrbenchError
from drbench.files import download, fetching
from drbench.files.fetching import Item

BODY = bytes(range(256)) * 12_000  # 3 MB: three reads
SHA256 = hashlib.sha256(BODY).hexdigest()


class Site:
    """What the server offers, how it fails, and what it was asked."""

    def __init__(self):
        self.body, self.etag, self.cut, self.type, self.asked = BODY, '"one"', None, "application/octet-stream", []
        self.ranges, self.move, self.pause = True, None, 0.0


@pytest.fixture
def site():
    offered = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked, tag = self.headers.get("Range"), self.headers.get("If-Range")
            offered.asked.append(asked)
            if offered.move:
                self.send_response(302)
                self.send_header("Location", offered.move)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(asked.split("=")[1].rstrip("-")) if asked and offered.ranges and tag == offered.etag else 0
            rest = offered.body[start:]
            self.send_response(206 if start else 200)
            if start:
                total = len(offered.body)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("Content-Type", offered.type)
            self.send_header("ETag", offered.etag)
            self.end_headers()
            time.sleep(offered.pause)
            with contextlib.suppress(OSError):  # who is told too much hangs up
                self.wfile.write(rest if offered.cut is None else rest[: max(0, offered.cut - start)])
            if offered.cut is not None:
                self.close_connection = True

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    offered.url = f"http://127.0.0.1:{server.server_port}/weights.pt"
    yield offered
    server.shutdown()
    server.server_close()


def item(tmp_path, site=None, **facts):
    url = {"url": site.url} if site else {}
    return Item("theirs/a", tmp_path / "cache" / "a.pt", **{**url, **facts})


def get(wanted):
    return fetching.fetch(wanted, loopback=True)


def left(wanted):
    """Names beside the file."""
    return sorted(path.name for path in wanted.path.parent.iterdir())


def test_a_file_comes_is_noted_and_is_not_asked_for_again(tmp_path, site):
    wanted = item(tmp_path, site)
    assert fetching.state(wanted) == "not here"
    found = get(wanted)
    assert found.content == (len(BODY), SHA256, hashlib.md5(BODY).hexdigest()) and found.trust == "first use"
    assert wanted.path.read_bytes() == BODY and fetching.state(wanted) == "present"
    assert get(wanted).content == found.content and len(site.asked) == 1
    assert left(wanted) == ["a.pt", "a.pt.json", "a.pt.lock"]
    assert fetching.verify(wanted).source == site.url
    assert fetching.fetch(item(tmp_path / "other", site, sha256=SHA256), loopback=True).trust == "manifest"


def test_what_broke_off_is_resumed(tmp_path, site):
    wanted, site.cut = item(tmp_path, site), 2_000_000
    with pytest.raises(DrbenchError, match=r"(?s)broke off.*the same command goes on.*goes to: .*a\.pt"):
        get(wanted)
    assert not wanted.path.exists() and Path(f"{wanted.path}.partial").stat().st_size == 2_000_000
    site.cut = None
    assert get(wanted).content.sha256 == SHA256
    assert site.asked == [None, "bytes=2000000-"] and left(wanted) == ["a.pt", "a.pt.json", "a.pt.lock"]


@pytest.mark.parametrize("change", ["tag", "size", "address", "no ranges", "weak tag", "no memo"])
def test_what_may_be_another_file_is_not_resumed(tmp_path, site, change):
    wanted, site.cut = item(tmp_path, site), 1_500_000
    site.etag = 'W/"one"' if change == "weak tag" else '"one"'
    with pytest.raises(DrbenchError):
        get(wanted)
    site.cut, site.body = None, BODY[::-1]
    if change == "tag":
        site.etag = '"two"'
    elif change == "size":
        site.body += b"more"
    elif change == "address":
        wanted = item(tmp_path, None, url=site.url + "?moved")
    elif change == "no ranges":
        site.ranges = False
    elif change == "no memo":
        Path(f"{wanted.path}.partial.json").unlink()
    assert get(wanted).content.sha256 == hashlib.sha256(site.body).hexdigest()
    assert wanted.path.read_bytes() == site.body


def test_killed_after_the_last_byte(tmp_path, site):
    wanted = item(tmp_path, site)
    wanted.path.parent.mkdir()
    Path(f"{wanted.path}.partial").write_bytes(BODY)
    memo = {"url": site.url, "etag": '"one"', "bytes": len(BODY)}
    Path(f"{wanted.path}.partial.json").write_text(json.dumps(memo))
    assert get(wanted).content.sha256 == SHA256 and site.asked == []


@pytest.mark.parametrize(
    "facts, expected",
    [
        ({"sha256": "0" * 64}, f"sha256 is {SHA256}, expected 0000"),
        ({"md5": "0" * 32}, r"md5 is .* expected 0000"),
        ({"bytes": 5}, "the server offers 3,072,000 bytes, expected 5: it is another file"),
    ],
)
def test_another_file_is_refused_and_not_kept(tmp_path, site, facts, expected):
    wanted = item(tmp_path, site, **facts)
    with pytest.raises(DrbenchError, match=expected):
        get(wanted)
    assert left(wanted) == ["a.pt.lock"]


def test_caps(tmp_path, site, monkeypatch):
    with pytest.raises(DrbenchError, match="more than the 1,000 that are allowed"):
        download.download(site.url, tmp_path / "a", most=1000, loopback=True)
    monkeypatch.setattr(download, "_total", lambda answer: None)  # a server that does not say how much comes
    with pytest.raises(DrbenchError, match="larger than 1,000 bytes"):
        download.download(site.url, tmp_path / "a", most=1000, loopback=True)
    assert list(tmp_path.iterdir()) == []


def test_web_pages_are_recognised(tmp_path, site):
    site.body = b"\n <!DOCTYPE html><html>Quota exceeded</html>"
    wanted = item(tmp_path, site)
    with pytest.raises(DrbenchError, match="it is a web page, not the file: a quota, log-in or confirmation page"):
        get(wanted)
    assert left(wanted) == ["a.pt.lock"]
    page = tmp_path / "a.pt"
    page.write_bytes(site.body)
    with pytest.raises(DrbenchError, match="web page"):
        fetching.add(wanted, page)
    assert left(wanted) == ["a.pt.lock"]


def test_two_at_once_download_once(tmp_path, site):
    wanted, site.pause, found = item(tmp_path, site), 0.2, []
    threads = [threading.Thread(target=lambda: found.append(get(wanted))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.asked) == 1 and [each.content.sha256 for each in found] == [SHA256] * 2


def test_only_https(tmp_path, site):
    with pytest.raises(DrbenchError, match="expected an address that begins with https://"):
        fetching.fetch(item(tmp_path, site))
    for other in ("ftp://127.0.0.1/a", "file:///etc/passwd", "http://example.org/a"):
        with pytest.raises(DrbenchError, match="begins with https://"):
            get(item(tmp_path, None, url=other))
    site.move = "http://example.org/elsewhere"
    with pytest.raises(DrbenchError, match="elsewhere: expected an address"):
        get(item(tmp_path, site))


def test_offline_says_all_that_is_needed(tmp_path):
    wanted = item(tmp_path, None, url="https://127.0.0.1:9/a.pt", bytes=7, sha256="0" * 64, where="See the README")
    with pytest.raises(DrbenchError) as caught:
        get(wanted)
    text = str(caught.value)
    for part in ("cannot be reached", "a.pt, 7 bytes, sha256 0000", "https://127.0.0.1:9/a.pt; See the README",
                 f"goes to:  {wanted.path}", "drbench weights fetch theirs/a",
                 "drbench weights add FILE --name theirs/a"):  # fmt: skip
        assert part in text
    with pytest.raises(DrbenchError, match=r"(?s)cannot be fetched.*no public source is known"):
        get(item(tmp_path))


def test_local_files(tmp_path):
    path = tmp_path / "given.pt"
    path.write_bytes(BODY)
    wanted = item(tmp_path)
    found = fetching.add(wanted, path)
    assert found.trust == "first use" and found.source == str(path) and wanted.path.read_bytes() == BODY
    assert left(wanted) == ["a.pt", "a.pt.json", "a.pt.lock"] and not wanted.path.is_symlink()
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    with pytest.raises(DrbenchError, match=r"the file that came first .* had .* delete .*a.pt.json"):
        fetching.add(wanted, other)
    assert wanted.path.read_bytes() == BODY
    linked = item(tmp_path / "b", sha256=SHA256)
    assert fetching.add(linked, path, link=True).trust == "manifest"
    assert linked.path.is_symlink() and linked.path.read_bytes() == BODY
    with pytest.raises(DrbenchError, match="no file"):
        fetching.add(wanted, tmp_path / "nothing")


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_in_its_place_stays(tmp_path, link):
    """A link in place of the file to which it leads would lead nowhere."""
    wanted, alias = item(tmp_path), tmp_path / "alias.pt"
    wanted.path.parent.mkdir(parents=True)
    wanted.path.write_bytes(BODY)
    alias.symlink_to(wanted.path)
    for path in (wanted.path, alias):
        assert fetching.add(wanted, path, link=link).content.sha256 == SHA256
        assert wanted.path.read_bytes() == BODY and not wanted.path.is_symlink()


def test_folders_and_files_that_cannot_be_read(tmp_path, monkeypatch):
    wanted, given = item(tmp_path), tmp_path / "given.pt"
    given.write_bytes(BODY)
    wanted.path.mkdir(parents=True)
    for step in (lambda: get(wanted), lambda: fetching.add(wanted, given)):
        with pytest.raises(DrbenchError, match=r"a.pt is a folder, where a file belongs"):
            step()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DrbenchError, match=r"no file .*given.pt that can be read"):
        fetching.add(wanted, given)
    with pytest.raises(DrbenchError, match=r"cache cannot be read: Is a directory"):
        download.inspect(wanted.path.parent)


@pytest.mark.parametrize("noted", ["[1]", '{"bytes": "many"}', '{"bytes": null}', "{"])
def test_notes_that_cannot_be_read(tmp_path, noted):
    wanted = item(tmp_path)
    wanted.path.parent.mkdir(parents=True)
    wanted.path.write_bytes(BODY)
    wanted.memo.write_text(noted)
    with pytest.raises(DrbenchError, match=r"a.pt.json: not readable .* delete it and add the file again"):
        fetching.state(wanted)


def test_damage_is_found(tmp_path):
    path = tmp_path / "given.pt"
    path.write_bytes(BODY)
    wanted = item(tmp_path)
    fetching.add(wanted, path)
    wanted.path.write_bytes(b"\x00" + BODY[1:-1] + b"\x01")
    assert fetching.state(wanted) == "present"  # of the right size: only reading it tells
    with pytest.raises(DrbenchError, match=r"sha256 is .* but the file that came first"):
        fetching.verify(wanted)
    wanted.path.write_bytes(BODY[:-1])
    assert fetching.state(wanted) == "present, but 3,071,999 bytes instead of 3,072,000"
    wanted.path.unlink()
    with pytest.raises(DrbenchError, match=r"(?s)is not here.*goes to:"):
        fetching.verify(wanted)


def test_folders_that_cannot_be_written(tmp_path, site):
    (tmp_path / "cache").write_text("a file where the folder should be")
    for step in (lambda: get(item(tmp_path, site)), lambda: fetching.add(item(tmp_path), Path(__file__))):
        with pytest.raises(DrbenchError, match=r"cannot write to .*cache.* in DRBENCH_WEIGHTS"):
            step()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path, site):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(DrbenchError, match=r"cannot write to .*cache.* in DRBENCH_WEIGHTS"):
        get(item(tmp_path, site))


def test_hub_files_are_pinned(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def give(repo, file, *, repo_type, revision, local_dir):
        asked.append((repo, file, repo_type, revision))
        Path(local_dir).mkdir()
        (Path(local_dir) / file).write_bytes(BODY)
        return str(Path(local_dir) / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    wanted, commit = item(tmp_path, hub={"repo": "them/net", "file": "model.bin"}), "a" * 40
    for revision in (None, "main", "a" * 39):
        with pytest.raises(DrbenchError, match="--revision with the 40 digits of a commit"):
            fetching.fetch(wanted, revision)
    assert asked == [] and wanted.command.endswith("fetch theirs/a --revision COMMIT")
    found = fetching.fetch(wanted, commit)
    assert asked == [("them/net", "model.bin", "model", commit)] and commit in found.source
    assert left(wanted) == ["a.pt", "a.pt.json", "a.pt.lock"]

    def refuse(*words, **more):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DrbenchError, match=r"(?s)the hub did not give it: no connection.*blob/aaaa"):
        fetching.fetch(item(tmp_path / "b", hub={"repo": "them/net", "file": "model.bin", "revision": commit}))
