"""Radius and eps curves: the files, the drawn data against counts made by hand, and who looks like what."""

import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import numpy as np
import pytest

from drbench import stats
from drbench.errors import DrbenchError
from drbench.plots import certified_plots, curves, looks, pareto_plot, robust_plots
from drbench.records import record
from drbench.report.gather import gather
from drbench.tables import pareto, robust_tables, summary
from tests.runs import make_cascade, make_run

N, ALPHA, ALL = 1000, 0.001, 1000
FULL = Path(__file__).parents[2] / "results" / "digits" / "full"


@pytest.fixture
def runs(tmp_path):
    votes = {0.25: [ALL, ALL, 600, 0], 0.5: [ALL, 900, 0, 0]}
    return [
        make_run(tmp_path / "in" / f"{name}{sigma}", hits, defense=name, variant=variant, sigma=sigma)
        for name, variant in (("rcm", ""), ("noise_augmented", "100%_$a$"), ("constant", ""))
        for sigma, hits in votes.items()
    ]


def draw(runs):
    """The figure's axes, in the order of the panels."""
    return certified_plots._draw(curves.curve_frame(runs), looks.of(runs)).axes


def recorded(*patterns) -> list[record.Run]:
    return [record.read(folder) for pattern in patterns for folder in sorted(FULL.glob(pattern))]


def draw_robust(runs, among=None):
    return robust_plots._draw(robust_tables.frame(runs), among or runs)


def texts_of(svg) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_files_are_valid_and_hold_all_titles_and_names(tmp_path, runs):
    png, svg = certified_plots.radius_curves(runs, tmp_path / "out" / "curves")
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    width, height = struct.unpack(">II", data[16:24])
    assert 1400 <= width <= 1800 and 400 <= height <= 1200 and len(data) < 250_000
    texts = texts_of(svg)
    names = ("rcm", "constant", "noise_augmented (100%_$a$)")
    for title in ("σ = 0.25", "σ = 0.5", "envelope over σ (an oracle)", *names):
        assert texts.count(title) == 1
    assert {"best at σ = 0.25", "best at σ = 0.5", "at σ = 0.5"} <= set(texts)
    assert texts.count("for n = 1,000") == 2 and any("dotted: ceiling radii" in text for text in texts)
    one_level = [run for run in runs if run.header["engine"]["sigma"] == 0.5]
    _, svg = certified_plots.radius_curves(one_level, tmp_path / "one")
    assert not any(text.startswith("best at") for text in texts_of(svg))  # there is no envelope


def test_the_same_records_give_the_same_bytes(tmp_path, runs):
    first = [path.read_bytes() for path in certified_plots.radius_curves(runs, tmp_path / "a")]
    again = [record.read(folder) for folder in record.find([tmp_path / "in"])][::-1]
    second = [path.read_bytes() for path in certified_plots.radius_curves(again, tmp_path / "b")]
    assert first == second
    assert b"<dc:date>" not in first[1] and str(tmp_path).encode() not in first[1]


def drawn(axes, radius: float, line: int = 0) -> float:
    """Height of a drawn left-continuous step curve (%)."""
    x, y = axes.lines[line].get_data()
    assert axes.lines[line].get_drawstyle() == "steps-pre"
    return float(np.asarray(y)[np.searchsorted(x, radius, side="left")])


def test_curves_step_exactly_at_the_certified_radii(tmp_path):
    """4 images at sigma 0.5: radii 1.23, 0.55, 0.10, and a wrong one."""
    run = make_run(tmp_path / "a", [ALL, 900, 600, 0], sigma=0.5)
    axes = draw([run])[0]
    radii = [stats.gaussian_radius(k, N, ALPHA, 0.5) for k in (600, 900, ALL)]
    expected = [75.0, 50.0, 25.0]
    for radius, share, after in zip(radii, expected, [50.0, 25.0, None], strict=True):
        assert drawn(axes, radius) == share
        assert after is None or drawn(axes, np.nextafter(radius, 9)) == after
    x, y = axes.lines[0].get_data()
    assert (x[-1], y[-1]) == (radii[-1], 0.0)  # falls to 0 at the ceiling and ends there
    area = np.sum(np.diff(x) * np.asarray(y)[1:]) / 100
    assert area == pytest.approx(summary.frame([run])["acr"].iat[0], rel=1e-12)
    assert (np.diff(y) <= 0).all()


def test_the_envelope_panel_is_the_best_of_both(runs):
    mine = [run for run in runs if run.header["defense"]["name"] == "rcm"]
    low, high, best = draw(mine)
    for radius in (0.0, 0.05, 0.3, 0.5):
        assert drawn(best, radius) == max(drawn(low, radius), drawn(high, radius))
    top = stats.ceiling_radius(N, ALPHA, 0.25)
    assert drawn(best, np.nextafter(top, 9)) == drawn(high, np.nextafter(top, 9)) == 25.0
    symbols = {float(line.get_xdata()[0]): line.get_marker() for line in best.lines if line.get_marker() != "None"}
    assert symbols == {0.0: "o", 0.25: "o", 0.5: "o", 0.75: "s", 1.0: "s"}


def test_ceilings_are_drawn_at_the_ceiling_radius(runs):
    axes = draw(runs)
    limits = [stats.ceiling_radius(N, ALPHA, sigma) for sigma in (0.25, 0.5)]
    dotted = [sorted(line.get_xdata()[0] for line in a.lines if line.get_linestyle() == ":") for a in axes]
    assert dotted == [limits[:1], limits[1:], limits]
    ends = [{line.get_xdata()[-1] for line in a.lines if line.get_drawstyle() == "steps-pre"} for a in axes]
    assert ends == [{limits[0]}, {limits[1]}, {limits[1]}]


def test_a_method_looks_the_same_in_all_panels_and_unlike_the_others(runs):
    def looks(axes):
        curves = [line for line in axes.lines if line.get_drawstyle() == "steps-pre"]
        return [(line.get_color(), line.get_linestyle(), line._unscaled_dash_pattern) for line in curves]

    first, *others = [looks(axes) for axes in draw(runs)]
    assert len(first) == 3 and all(other == first for other in others)
    assert len({colour for colour, *_ in first}) == 3 and len({str(dash) for *_, dash in first}) == 3


@pytest.mark.parametrize("names", [["rcm"], ["rcm", "mine", "constant"], [*looks.COLOURS]], ids=len)
def test_no_two_of_390_methods_look_alike_as_lines_or_as_points(names):
    found = looks._choose([(names[i % len(names)], f"{i:03}") for i in range(390)]).values()
    assert len({str(look.line) for look in found}) == len({str(look.point) for look in found}) == 390


def test_a_method_looks_the_same_in_all_figures_and_in_the_report():
    certified = recorded("runs/denoised-*/*", "runs/undefended/*", "runs/rcm-seed_0/*")
    attacked = recorded("attacks/denoised-*/l2-*", "attacks/undefended/l2-*", "attacks/rcm-seed_0/l2-*")
    runs = [*certified, *attacked]
    styles, names = looks.of(runs), ("denoised (one_shot)", "undefended", "rcm (seed 0)")
    figures = [certified_plots._draw(curves.curve_frame(certified), styles), draw_robust(attacked, runs)]
    figures += [pareto_plot._draw(pareto.frame(certified, pareto.DRAWN), "evaluations", "", styles)]
    panels = [figure["panels"] for figure in gather(runs).figures]
    for name in names:
        drawn = [handle for figure in figures for handle in figure.legends[0].legend_handles
                 if handle.get_label().startswith(name)]  # fmt: skip
        lines = [line for each in panels for panel in each for line in panel["lines"] if line["label"].startswith(name)]
        assert len(drawn) == 3 and len({line["label"] for line in lines}) >= 2
        assert len({handle.get_color() for handle in drawn} | {line["colour"] for line in lines}) == 1
        assert len({str(handle._unscaled_dash_pattern) for handle in drawn[:2]}) == 1
        assert len({handle.get_marker() for handle in drawn[1:]}) == 1
        assert len({line["dash"] for line in lines if "dash" in line}) == 1
        assert len({line["symbol"] for line in lines if "symbol" in line}) == 1


def test_the_colour_of_a_defense_does_not_depend_on_the_others():
    alone = {name: looks._choose([(name, "")])[name, ""] for name in (*looks.COLOURS, "other/mine")}
    together = looks._choose((name, "") for name in alone)
    assert len({alone[name].colour for name in looks.COLOURS}) == len(looks.COLOURS)
    assert all(together[name, ""] == alone[name] for name in looks.COLOURS)


def test_symbols_of_noise_levels_are_the_same_in_all_figures():
    one, other = certified_plots._level_markers([0.0, 0.25, 0.5]), certified_plots._level_markers([0.12, 0.25, 0.5, 1])
    assert (one[0.25], one[0.5]) == (other[0.25], other[0.5]) == ("o", "s")
    assert {0.0, 0.25, 0.5} <= one.keys() and len(set(other.values())) == len(other) == 4


@pytest.mark.parametrize("kind", ["certified", "robust"])
def test_the_headline_of_one_panel_fits(kind):
    if kind == "certified":
        runs = recorded("runs/diffpure-*/*0.25*")
        figure = certified_plots._draw(curves.curve_frame(runs), looks.of(runs))
    else:
        figure = draw_robust(recorded("attacks/undefended/l2-*"))
    figure.draw_without_rendering()
    text, title = figure._suptitle.get_window_extent(), figure.axes[0].title.get_window_extent()
    assert text.x0 >= 0 and text.x1 <= figure.bbox.width and title.y1 <= text.y0 and text.y1 <= figure.bbox.height
    assert figure._suptitle.get_text().count("\n") <= 1


def test_robust_accuracy_at_one_eps_is_a_point_and_at_several_a_curve_with_a_band():
    several = draw_robust(recorded("attacks/undefended/l2-*"))
    assert several.legends[0].handlelength == 3.5 and not several.axes[0].containers
    (curve,), (band,) = several.axes[0].lines, several.axes[0].collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert curve.get_linestyle() != "None" and low == 0.0 and high == 100.0 and not curve.get_clip_on()
    one = draw_robust(recorded("attacks/undefended/l2-1-*")).axes[0]
    (bars,) = one.containers
    assert bars.has_yerr and bars.lines[0].get_linestyle() == "None" and bars.lines[0].get_marker() not in ("", "None")
    assert list(one.get_xticks()) == [0, 1]


def test_lines_of_one_method_under_two_attacks_differ():
    runs = recorded("attacks/multiscale-tuned-denoiser/*")
    handles = draw_robust(runs).legends[0].legend_handles
    assert len(handles) == 2 == len({(handle.get_color(), handle.get_marker()) for handle in handles})
    (first, *_) = [handle for handle in handles if "standard" in handle.get_label()]
    assert first.get_color() == looks.of(runs)["multiscale", "tuned-denoiser"].colour


def test_bands_are_the_intervals(tmp_path):
    axes = draw([make_run(tmp_path / "a", [ALL] * 8 + [0] * 2)])[0]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    low, high = stats.interval(8, 10)
    assert (heights.min(), heights.max()) == pytest.approx((100 * low, 100 * high))


def test_marks_and_what_differs_are_in_the_legend(tmp_path):
    whole = make_run(tmp_path / "a", [ALL, ALL], defense="whole")
    half = make_run(tmp_path / "b", [ALL], images=2, n=2000, defense="half", dirty=True)
    texts = texts_of(certified_plots.radius_curves([whole, half], tmp_path / "p")[1])
    assert "whole [n = 1,000; images = 2]" in texts
    assert "half [n = 2,000; images = 1; dirty; partial]" in texts
    assert "whole" in texts_of(certified_plots.radius_curves([whole], tmp_path / "q")[1])


def test_two_data_sets_get_panels_of_their_own(tmp_path):
    runs = [make_run(tmp_path / "a", [ALL])]
    runs += [make_run(tmp_path / f"b{s}", [0, ALL], subset="test/first2", sigma=s) for s in (0.25, 0.5)]
    assert [axes.get_title() for axes in draw(runs)] == [
        "digits test/first2, σ = 0.25", "digits test/first2, σ = 0.5",
        "digits test/first2, envelope over σ (an oracle)",
        "digits test, σ = 0.5",
    ]  # fmt: skip
    assert [drawn(axes, 0.5) for axes in draw(runs)] == [50.0, 50.0, 50.0, 100.0]


def test_nothing_to_draw_and_an_unwritable_place_are_errors(tmp_path):
    with pytest.raises(DrbenchError, match="recorded image"):
        certified_plots.radius_curves([make_run(tmp_path / "a", [], images=1)], tmp_path / "p")
    (tmp_path / "file").write_text("")
    with pytest.raises(DrbenchError, match="cannot write plot"):
        certified_plots.radius_curves([make_run(tmp_path / "b", [ALL])], tmp_path / "file" / "p")


def test_tables_and_plots_load_no_torch(tmp_path):
    make_run(tmp_path / "runs" / "a" / "s", [ALL, 900])
    code = (
        "import sys; from drbench.plots import certified_plots; from drbench.records import record; "
        "from drbench.tables import certified_tables, summary\n"
        f"runs = [record.read(f) for f in record.find([{str(tmp_path)!r}])]\n"
        f"certified_tables.write(summary.frame(runs), {str(tmp_path / 't')!r})\n"
        f"certified_plots.radius_curves(runs, {str(tmp_path / 'p')!r})\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(summary.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "t.md", "t.csv", "t.tex", "p.png", "p.svg"}


def test_a_cascade_stands_beside_the_single_sigmas_of_its_weights_and_draws(tmp_path):
    runs = [make_run(tmp_path / f"{sigma}", [ALL, 600], defense="same", sigma=sigma) for sigma in (0.25, 0.5, 1.0)]
    runs += [make_run(tmp_path / "more", [ALL, 600], defense="more", sigma=1.0, n=2000)]
    other = make_run(tmp_path / "other", [ALL, 600], defense="other", sigma=1.0)
    header = other.header | {"defense": other.header["defense"] | {"checkpoints": {"a": "f" * 64}}}
    record.write_header(other.folder, header)
    run = make_cascade(tmp_path / "c", [[900], [400, 900]])
    axes = [a for a in draw([*runs, record.read(other.folder), run]) if a.get_visible()]
    assert [a.get_title() for a in axes] == [
        "σ = 0.25", "σ = 0.5", "σ = 1", "envelope over σ (an oracle)", "cascade over σ = 1, 0.25",
    ]  # fmt: skip
    curves = [line for line in axes[-1].lines if line.get_drawstyle() == "steps-pre"]
    assert [line.get_linewidth() for line in curves] == [1.0, 1.0, 1.8]  # 0.25 and 1 of the same weights and draws
    assert {"σ = 0.25", "σ = 1"} <= {text.get_text() for text in axes[-1].texts}
    radii = [stats.gaussian_radius(900, N, ALPHA / 2, sigma) for sigma in (0.25, 1.0)]
    assert [drawn(axes[-1], radius, 2) for radius in radii] == [100.0, 50.0]
    assert drawn(axes[-1], np.nextafter(radii[0], 9), 2) == 50.0
    (alone,) = draw([run])
    assert alone.get_title() == "cascade over σ = 1, 0.25"
    ceiling = stats.ceiling_radius(N, ALPHA / 2, 1.0)  # far beyond the curve: written, not drawn
    assert radii[1] < alone.get_xlim()[1] < ceiling
    assert f"ceiling: {ceiling:.2f}" in {text.get_text().strip() for text in alone.texts}
