"""The claims script on runs with chosen votes: verdicts, figures, refusals. No torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import multiscale_claims
from drbench import stats
from tests.runs import make_cascade, make_run

ROOT, SIGMAS = Path(__file__).parents[2], (0.25, 0.5, 1.0)


@pytest.fixture
def runs(tmp_path):
    """60 images: 20 halt at sigma = 1, 20 pass on to 0.25, 10 are undecided, 10 halt at sigma = 1 on a wrong class."""
    stops = [[900]] * 20 + [[350, 350, 900]] * 20 + [[500]] * 10
    wrong = [[60, 60, 60]] * 10  # class 1 is selected and passes everywhere: none halts
    return [
        make_cascade(tmp_path / "a", stops + wrong, sigmas=SIGMAS, clean=(0.0, 9.0, 0.0)),
        make_cascade(tmp_path / "b", [[950]] * 20 + stops[20:] + wrong, sigmas=SIGMAS, variant="tuned-denoiser"),
        *(
            make_run(tmp_path / f"{sigma}", [*[first] * 20, *[second] * 20, *[0] * 20], defense="denoised", sigma=sigma)
            for sigma, first, second in ((0.25, 990, 990), (0.5, 900, 400), (1.0, 900, 350))
        ),
    ]  # fmt: skip


def test_verdicts(runs):
    found = {claim: (verdict, figures) for claim, verdict, figures in multiscale_claims.claims(runs)}
    assert found["certified accuracy at r = 0: cascade above sigma = 1 alone"][0] == "holds"
    verdict, figures = found["certified accuracy at r = 0.25: cascade below sigma = 0.25 alone"]
    assert verdict == "holds" and "20 images up, 0 down, p = 1.9e-06" in figures and figures.startswith("+0.3333")
    assert found["ACR: cascade above sigma = 0.5 alone"][0] == "holds"
    assert found["fine-tuning the denoiser (our variant) raises ACR"][0] == "holds"
    assert found["cascade + fallback is close to the clean classifier"] == (
        "holds", "+0.0000 [+0.0000, +0.0000]; 0 images up, 0 down, p = 1"
    )  # fmt: skip
    verdict, figures = found["over-smoothing is the main error at sigma = 1"]
    assert (verdict, figures) == ("holds", "passed on 30, undecided 10, over-confident (wrong class) 0 of 60 images")
    verdict, figures = found["an image that halts at sigma = 1 never gets a larger radius than there alone"]
    assert (verdict, figures) == ("holds", "0 of 20 images")
    assert found["mean cost is about 1.5 times that of one scale"][1].startswith("2.00 [")


def test_paired_interval_is_that_of_the_differences(runs):
    one, two = (multiscale_claims.images(run) for run in runs[:2])
    low, high, text = multiscale_claims.paired(two.radius, one.radius)
    assert (low, high) == stats.bootstrap_mean(two.radius - one.radius) and text.startswith("+")


def test_from_the_command_line_without_torch(runs, tmp_path):
    code = "import sys; from benchmarks import multiscale_claims as m; code = m.main(sys.argv[1:]); "
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("| claim | verdict | figures |"), done.stderr
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "1.0")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "expected a run of benchmarks/digits/full/multiscale.yaml" in done.stderr
