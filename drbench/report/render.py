"""The page as one file of HTML: nothing is fetched, and nothing runs but the two scripts named by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from drbench.errors import DrbenchError
from drbench.records.record import Run
from drbench.report.book import Book
from drbench.report.gallery import Picture, pictures
from drbench.report.gather import Page, gather

HERE = Path(__file__).parent
SCRIPTS = ("tables.js", "details.js", "figures.js")
POLICY = ("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
          "script-src {hashes}")  # fmt: skip
SECTIONS = {"certified": "Certified accuracy", "figures": "Figures", "attacked": "Under attack", "claims": "Claims",
            "equal": "At equal draws",
            "gallery": "Pictures", "sources": "Provenance", "notes": "Marks and notes"}  # fmt: skip
FIGURES = {
    "curves": ("Certified accuracy against radius",
               "Exact steps at the certified radii; bands are pointwise 95 % intervals over the images. Dotted: "
               "ceiling radii, beyond which nothing can be certified. A point opens the images behind it."),
    "cost": ("Certified accuracy against cost",
             "Cost of one image over all its draws. The grey line is the front: the best accuracy for at most that "
             "cost. Seconds are of the machine of each run."),
    "robust": ("Robust accuracy against the bound of the attack",
               "Under the strongest examples found, with 95 % intervals over the images; clean accuracy stands at 0."),
}  # fmt: skip


def write(runs: Sequence[Run] | Book, out: Path, roots: Sequence[str | Path] = ()) -> Path:
    """Write the page of these runs, with pictures that lie in `roots`. The same records give the same bytes."""
    page = gather(runs)
    text = render(page, pictures(roots, [run["place"] for run in page.runs]))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DrbenchError(f"cannot write report {out}: {error.strerror}; choose another file with --out") from error
    return out


def render(page: Page, gallery: Sequence[Picture] = ()) -> str:
    """The page as text. Every value is escaped by Jinja, or embedded as JSON without `<`."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["json"] = embedded
    scripts = [_script(get_plotlyjs()), _script("".join((HERE / name).read_text("utf-8") for name in SCRIPTS))]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return environment.get_template("report.html.j2").render(
        **page._asdict(), gallery=gallery, figure_words=FIGURES, sections=_sections(page, gallery),
        policy=POLICY.format(hashes=hashes),
        style=Markup((HERE / "report.css").read_text("utf-8")), plotly=scripts[0], script=scripts[1],
    )  # fmt: skip


def _sections(page: Page, gallery: Sequence[Picture]) -> list[tuple[str, str]]:
    shown = {"certified": page.boards, "figures": page.figures, "attacked": page.attacks, "claims": page.claims,
             "equal": page.equal, "gallery": gallery}  # fmt: skip
    return [(key, title) for key, title in SECTIONS.items() if shown.get(key, True)]


def embedded(value) -> Markup:
    """JSON that no HTML parser can take for the end of its element; NaN is refused."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def _script(text: str) -> Markup:
    if "</script" in text.lower():
        raise DrbenchError("a script of the report holds its own end tag; install plotly as pinned in constraints.txt")
    return Markup(text)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
