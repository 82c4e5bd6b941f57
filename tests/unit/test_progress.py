"""Progress on a pipe: a line now and then, with rate, time left and the note."""

import re

from drbench.progress import Progress


def test_lines(monkeypatch, capsys):
    monkeypatch.setattr("drbench.progress.LINE_EVERY", 0.0)
    with Progress("digits", 4, "images", done=1) as bar:
        for _ in range(3):
            bar.advance(lambda: "certified 0.900 at r=0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"digits: 2/4 images, [\d.e+]+ images/s, \d+ s left, certified 0.900 at r=0", lines[0])
    assert lines[-1].startswith("digits: 4/4 images") and " 0 s left" in lines[-1]


def test_nothing_is_asked_or_printed_before_its_time(capsys):
    with Progress("digits", 4, "images") as bar:
        bar.advance(lambda: 1 / 0)
    assert capsys.readouterr().err == ""
