"""The report in a real browser, without a network: what a reader sees, clicks, types and prints."""

import re
import shutil
from pathlib import Path

import pytest

from drbench.records import record
from drbench.report import render
from tests.runs import make_cascade, make_run
from tests.unit.test_report import ATTACKS, EVIL, evil_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install drbench[dev]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

slow = pytest.mark.slow  # a page takes a second or two; the fast tests open it for what matters most
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [
        make_run(folder / "runs" / "a" / "1", [990, 900, None, 400], sigma=0.25, defense="zeta"),
        make_run(folder / "runs" / "a" / "2", [1000, 950, 700, 960], sigma=0.25, defense="alpha"),
        make_run(folder / "runs" / "a" / "3", [900, 800], sigma=0.25, images=4, defense="middle"),
        make_run(folder / "runs" / "b" / "1", [900, 800, 700, 600], sigma=0.5),
        make_cascade(folder / "runs" / "c" / "1", [[990], [400, 900], None, [500]]),
        *(record.read(min((ATTACKS / name).glob("l2-0.5-*"))) for name in ("undefended", "denoised-one_shot")),
    ]
    return render.write(runs, folder / "report.html")


class Opened:
    """A page, and all that must stay empty: messages of the console, errors, requests beside the file itself."""

    def __init__(self, browser, path: Path, viewport: dict):
        self.context = browser.new_context(viewport=viewport, offline=True, reduced_motion="reduce")
        self.page, self.wrong = self.context.new_page(), []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._request)
        self._url = path.as_uri()
        self.page.goto(self._url)

    def _request(self, request) -> None:
        if not request.url.startswith(("data:", "blob:")) and request.url.partition("#")[0] != self._url:
            self.wrong.append(request.url)


@pytest.fixture
def open_page(browser):
    opened = []

    def opening(path, viewport=DESKTOP):
        opened.append(Opened(browser, path, viewport))
        return opened[-1].page

    yield opening
    for each in opened:
        each.context.close()
    assert not [text for each in opened for text in each.wrong]


def names(page, table: str) -> list[str]:
    return [text.split("\n")[0] for text in page.locator(f"#{table} tbody th button.open").all_inner_texts()]


def drawn(page, key: str):
    section = page.locator(f"#figure-{key}")
    section.scroll_into_view_if_needed()
    section.locator(".main-svg").first.wait_for()
    return section


@slow
def test_sorts_by_number_and_by_name(open_page, page_file):
    page = open_page(page_file)
    head = page.locator("#board-0 thead th").nth(1)
    assert names(page, "board-0") == ["alpha", "middle", "zeta"] and head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    cells = page.locator("#board-0 tbody tr td:nth-of-type(1)").evaluate_all("all => all.map(c => +c.dataset.value)")
    assert cells == sorted(cells, reverse=True) and len(set(cells)) > 1
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    first = page.locator("#board-0 thead th").first
    first.get_by_role("button").click()
    first.get_by_role("button").click()
    assert names(page, "board-0") == ["zeta", "middle", "alpha"] and head.get_attribute("aria-sort") == "none"


@slow
def test_filters_by_name_noise_and_marks(open_page, page_file):
    page = open_page(page_file)
    form = page.locator("form[data-of=certified]")
    form.get_by_label("defense").fill("alp")
    assert names(page, "board-0") and page.locator(
        "#tables-certified tbody tr:visible button.open"
    ).all_inner_texts() == ["alpha"]
    assert re.match(r"\d of \d+ rows", form.locator("output").inner_text())
    form.get_by_label("defense").fill("")
    form.get_by_label("noise").select_option("σ = 0.5")
    assert page.locator("#tables-certified tbody tr:visible").count() == 1
    form.get_by_label("noise").select_option("")
    form.get_by_label("without marks only").check()
    assert "middle" not in page.locator("#tables-certified tbody tr:visible button.open").all_inner_texts()


def test_hover_over_a_curve_tells_its_numbers(open_page, page_file):
    page = open_page(page_file)
    section = drawn(page, "curves")
    box = section.locator(".plot .xy .bg, .plot .nsewdrag").first.bounding_box()
    line = section.locator(".scatterlayer .trace .js-line").last.bounding_box()
    page.mouse.move(box["x"] + 3, line["y"] + 1)
    hover = section.locator(".hoverlayer .hovertext")
    hover.wait_for()
    assert re.search(r"\d+\.\d %.*images.*N = 1,000", hover.first.text_content())
    assert section.locator(".legend .badge").all_inner_texts() == ["† partial"]


@slow
def test_lines_are_switched_and_panels_chosen(open_page, page_file):
    page = open_page(page_file)
    section = drawn(page, "curves")
    count = section.locator(".scatterlayer .trace").count
    before = count()
    section.get_by_label("intervals").uncheck()
    assert count() == before / 3
    section.locator(".legend label").first.click()
    assert count() == before / 3 - 1
    section.get_by_label("panel").select_option("cascade over σ = 1, 0.25")
    assert "multiscale" in section.locator(".legend").inner_text()


def test_a_cell_opens_its_images_and_the_run_behind_them(open_page, page_file):
    page = open_page(page_file)
    row = page.locator("#board-0 tbody tr", has=page.get_by_role("button", name="alpha"))
    cell = row.locator("td[data-radius='0.25']")
    cell.click()
    dialog = page.get_by_role("dialog")
    shown = dialog.locator("#evidence tbody tr:visible").count()
    assert dialog.locator("output").inner_text() == f"{shown} of 4 images = {float(cell.inner_text().split()[0])} %"
    assert 0 < shown < 4 and "1:950 0:50" in dialog.locator("#evidence").inner_text()
    dialog.get_by_label("show").select_option("all images")
    assert dialog.locator("#evidence tbody tr:visible").count() == 4
    for text in ("0" * 40, "0" * 64, "alpha", "seed", "every certificate follows from its votes"):
        assert text in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.goto(page.url.partition("#")[0] + "#run-0")
    page.reload()
    assert page.get_by_role("dialog").is_visible()  # a link to a run


@slow
def test_an_attack_shows_its_settings_and_outcomes(open_page, page_file):
    page = open_page(page_file)
    page.locator("#tables-attacks").get_by_role("button", name="denoised (one_shot)").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("show").select_option("wrong at least once")
    rows = dialog.locator("#evidence tbody tr")
    assert 0 < rows.locator("visible=true").count() < rows.count() == 50
    text = dialog.inner_text()
    assert "pgd ce probability 100x16" in text and "bpda>exact" in text and "eps" in text


@pytest.mark.parametrize("opens", [pytest.param(False, marks=slow), True])
def test_a_phone_never_scrolls_sideways(open_page, page_file, opens):
    page = open_page(page_file, PHONE)
    for key in ("curves", "cost", "robust"):
        drawn(page, key)
    if opens:
        page.locator("#board-0 button.open").first.click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#board-0 tbody th").first.bounding_box()["width"] < 180


@slow
def test_everything_is_reached_by_keyboard_and_focus_is_seen(open_page, page_file):
    page = open_page(page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("""() => {
            const e = document.activeElement, inside = e.closest('th,form,td,.scroll')?.tagName;
            return [e.tagName, inside, getComputedStyle(e).outlineStyle !== 'none'].join(' ');
        }""")
        )
    assert {"SELECT FORM true", "INPUT FORM true", "BUTTON TH true", "DIV DIV true"} <= seen
    assert not [each for each in seen if each.endswith("false")]
    page.locator("#board-0 thead button").nth(1).focus()
    page.keyboard.press("Space")
    assert page.locator("#board-0 thead th").nth(1).get_attribute("aria-sort") == "descending"
    page.locator("#board-0 button.open").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "open"
    cell = page.locator("#board-0 td[data-radius]").first
    for _ in range(cell.evaluate("e => e.cellIndex")):
        page.keyboard.press("ArrowRight")
    assert cell.evaluate("e => e === document.activeElement && getComputedStyle(e).outlineStyle !== 'none'")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").locator("select").input_value() == "certified at r"
    page.keyboard.press("Escape")
    assert cell.evaluate("e => e === document.activeElement")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 2


def test_nothing_in_a_record_runs(open_page, tmp_path):
    page = open_page(render.write(evil_runs(tmp_path), tmp_path / "r.html"))
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    section = drawn(page, "curves")
    line = section.locator(".scatterlayer .trace .js-line").last.bounding_box()
    page.mouse.move(line["x"] + 3, line["y"] + 1)
    section.locator(".hoverlayer .hovertext").wait_for()
    assert "<img src=x onerror=alert(2)>" in section.locator(".hoverlayer").text_content()
    page.locator("button.open").first.click()
    assert EVIL in page.get_by_role("dialog").text_content()
    assert not alerts and page.locator("main img, dialog img, svg a").count() == 0


@slow
def test_prints_all_tables_and_figures(open_page, page_file, tmp_path):
    page = open_page(page_file)
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert page.locator(".plot .main-svg").count() >= 3 and (tmp_path / "report.pdf").stat().st_size > 50_000
    page.emulate_media(media="print")
    assert not page.locator("form.filters").first.is_visible() and page.locator("#provenance").is_visible()
