"""How the conformance suite reads documents, runs, reports and meets pytest."""

import contextlib
import inspect
import json
import math

import pytest
from torch import nn

from drbench.api import Defense, DrbenchError
from drbench.conformance.case import global_states
from drbench.testing import CHECKS, README_HEADINGS, Failure, Skip, check, checks_for, parametrize_with_checks


class Jittered(Defense):
    """A small correct adapter that draws."""

    citation = "jittered2024"
    randomized = True

    def __init__(self, input_shape=(1, 8, 8), num_classes=10):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = input_shape, num_classes, (0.25,)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifier(z + 0.1 * draws.randn(*z.shape))

    def nfe(self, sigma):
        return {"classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes)


# ---- documents: a package on disk --------------------------------------------------------------------------

GOOD_README = "\n".join(f"## {heading}\ntext" for heading in README_HEADINGS)


def in_package(folder, name, docstring, readme):
    """`Jittered` as it would live in a package with this module docstring and README."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "defense.py").write_text(f"{docstring!r}\n")
    if readme is not None:
        (package / "README.md").write_text(readme)
    __import__(f"{name}.defense")
    return type("Documented", (Jittered,), {"__module__": f"{name}.defense", "__qualname__": "Documented"})


DOCUMENT_FAULTS = {
    "uncited": ("A classifier.", GOOD_README, "arXiv id or year"),
    "unread": ("Cohen et al. 2019.", None, "README.md is missing"),
    "unfinished": ("arXiv 1902.02918", GOOD_README.replace("## Units", "Units"), "lacks the headings Units"),
}


@pytest.mark.parametrize("name", DOCUMENT_FAULTS)
def test_documents_are_read(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    docstring, readme, phrase = DOCUMENT_FAULTS[name]
    runs = dict(checks_for(in_package(tmp_path, f"faulty_{name}", docstring, readme)))
    with pytest.raises(Failure, match=phrase):
        runs["documented-1x8x8"]()
    good = in_package(tmp_path, f"good_{name}", "arXiv 1902.02918", GOOD_README)
    dict(checks_for(good))["documented-1x8x8"]()


# ---- running and reporting ---------------------------------------------------------------------------------


def test_check_reports_each_result_and_never_raises():
    class Broken(Jittered):
        tiny = classmethod(lambda cls, shape, classes: 1 / 0)

    seen = []
    results = check(Broken, report=seen.append)
    assert seen == results and len(results) == 2 * len(CHECKS)
    by_name = {(result.check, result.shape): result for result in results}
    assert by_name["constructor", "1x8x8"].status == "ok"
    assert by_name["documented", "1x8x8"].status == "skipped" and by_name["documented", "1x8x8"].message
    broken = by_name["shape_dtype", "3x32x32"]
    assert broken.status == "failed"
    assert broken.message.startswith("ZeroDivisionError") and "test_conformance_suite.py" in broken.message
    repeated = by_name["pure", "3x32x32"]
    assert repeated.status == "skipped" and repeated.message == "shape_dtype failed before"
    json.dumps([vars(result) for result in results])


def test_only_what_asks_logits_is_skipped_and_only_at_that_size():
    class Small(Jittered):
        citation = ""

        def logits(self, z, sigma, draws):
            return super().logits(z, sigma, draws)[:, : 10 if z.shape[1] == 1 else 4]

    found = {(each.check, each.shape): each for each in check(Small)}
    failed = {key for key, each in found.items() if each.status == "failed"}
    assert failed == {("declarations", "1x8x8"), ("declarations", "3x32x32"), ("shape_dtype", "3x32x32")}
    assert found["pure", "1x8x8"].status == "ok" and "failed before" not in found["documented", "3x32x32"].message


def test_a_crash_is_reported_at_the_line_of_the_adapter():
    class Narrow(Jittered):
        def logits(self, z, sigma, draws):
            return self.classifier(z[:, :, 1:])  # the line, though torch raises

    (result,) = {each.message for each in check(Narrow) if each.check == "shape_dtype" and each.shape == "1x8x8"}
    line = inspect.getsourcelines(Narrow.logits)[1] + 1
    assert result.startswith("RuntimeError") and result.endswith(f"(test_conformance_suite.py, line {line})")


class Still(Jittered):
    randomized = False


def test_expected_failures_are_strict():
    reasons = {"Jittered-gradient": "too noisy", "Still-pure-1x8x8": "known", "devices": "no device"}
    tests = {test.id: test.marks for test in parametrize_with_checks([Still, Jittered], reasons).args[1]}
    marked = {name for name, marks in tests.items() if marks}
    sizes = ("1x8x8", "3x32x32")
    devices = {f"{name}-devices-{size}" for name in ("Still", "Jittered") for size in sizes}
    assert marked == {f"Jittered-gradient-{size}" for size in sizes} | {"Still-pure-1x8x8"} | devices
    (mark,) = tests["Jittered-gradient-1x8x8"]
    assert mark.name == "xfail" and mark.kwargs == {"reason": "too noisy", "strict": True}


@pytest.mark.parametrize(
    ("reasons", "phrase"), [({"gradint": "x"}, "did you mean 'gradient'"), ({"gradient": " "}, "reason")]
)
def test_expected_failures_need_a_known_name_and_a_reason(reasons, phrase):
    with pytest.raises(DrbenchError, match=phrase):
        parametrize_with_checks([Still], reasons)


def test_running_a_check_leaves_the_global_generators_alone():
    before = global_states()
    for _, run in checks_for(Jittered):
        with contextlib.suppress(Skip):
            run()
    assert global_states() == before
