"""The conformance suite for adapters: run it on your own `Defense` before you believe a number.

In a test file::

    from drbench.testing import parametrize_with_checks

    @parametrize_with_checks([MyDefense])
    def test_conformance(check):
        check()

On the command line: `drbench check NAME`.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from drbench.api import Defense
from drbench.conformance import adapter, calls, engines, slopes
from drbench.conformance.adapter import README_HEADINGS
from drbench.conformance.case import Case, Failure, Skip
from drbench.errors import DrbenchError, did_you_mean

__all__ = [
    "CHECKS",
    "README_HEADINGS",
    "SIZES",
    "Failure",
    "Result",
    "Skip",
    "check",
    "checks_for",
    "parametrize_with_checks",
]

SIZES = (((1, 8, 8), 10), ((3, 32, 32), 5))  # (input_shape, num_classes)

CHECKS: dict[str, Callable[[Case], None]] = {
    function.__name__.removeprefix("check_"): function
    for function in (
        adapter.check_constructor,
        adapter.check_declarations,
        adapter.check_tiny_size,
        calls.check_shape_dtype,
        calls.check_logits_not_probabilities,
        calls.check_undeclared_sigma,
        calls.check_pure,
        calls.check_side_by_side,
        calls.check_rng_only,
        calls.check_randomized_flag,
        calls.check_rows_independent,
        slopes.check_one_function,
        slopes.check_two_parts,
        slopes.check_gradient,
        slopes.check_lipschitz,
        adapter.check_nfe,
        adapter.check_state_round_trip,
        adapter.check_devices,
        engines.check_certifiable,
        engines.check_trainable,
        engines.check_fit_seeded,
        adapter.check_documented,
    )
}
FIRST = "shape_dtype"  # an adapter that fails it fails most checks after it, for that reason


@dataclass(frozen=True)
class Result:
    """What one check found at one input size."""

    check: str
    shape: str
    status: Literal["ok", "failed", "skipped"]
    message: str
    seconds: float


def checks_for(defense_class: type[Defense]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every check of the suite at every size, as `("gradient-1x8x8", callable)`.

    Nothing is built before a callable is called. It returns if all is well, raises `Failure` (or whatever the
    adapter raises), or `Skip` where its declarations or this machine leave nothing to check.
    """
    for name, function in CHECKS.items():
        for shape, num_classes in SIZES:
            yield (
                f"{name}-{'x'.join(map(str, shape))}",
                partial(function, Case(defense_class, shape, num_classes)),
            )


def check(defense_class: type[Defense], report: Callable[[Result], None] | None = None) -> list[Result]:
    """Run the suite, never raising; `report` gets each result as soon as it is there.

    Where `logits` gives no usable scores (`shape_dtype`), checks of that size that would repeat this are skipped.

    Parameters
    ----------
    defense_class : type
        The adapter.
    report : callable, optional
        For progress: called with each `Result`.

    Returns
    -------
    list of Result
        The adapter conforms if none has the status "failed".
    """
    results, repeats = [], set()
    for name, run in checks_for(defense_class):
        results.append(_result(name, _skip if name in repeats else run, _file(defense_class)))
        if results[-1].check == FIRST and results[-1].status == "failed":
            repeats |= {f"{later}-{results[-1].shape}" for later in CHECKS if later != "documented"}
        if report is not None:
            report(results[-1])
    return results


def _skip() -> None:
    raise Skip(f"{FIRST} failed before")


def _file(defense_class: type[Defense]) -> str | None:
    return getattr(sys.modules.get(defense_class.__module__), "__file__", None)


def _result(name: str, run: Callable[[], None], file: str | None) -> Result:
    start, status, message = time.perf_counter(), "ok", ""
    try:
        run()
    except Skip as reason:
        status, message = "skipped", str(reason)
    except Failure as failure:
        status, message = "failed", str(failure)
    except Exception as error:  # an adapter may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])  # the author's line
        status, message = (
            "failed",
            f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})",
        )
    check_name, _, shape = name.rpartition("-")
    return Result(check_name, shape, status, message, time.perf_counter() - start)


def parametrize_with_checks(classes: Sequence[type[Defense]], expected_failures: Mapping[str, str] | None = None):
    """A pytest decorator: one test, with the argument `check`, for each class, check and size.

    Parameters
    ----------
    classes : sequence of type
        The adapters.
    expected_failures : mapping, optional
        From a check ("gradient"), a check of one class ("MyDefense-gradient") or one test id
        ("MyDefense-gradient-1x8x8") to the reason why it fails. A check that then passes is a failure.
    """
    import pytest

    reasons, used, parameters = dict(expected_failures or {}), set(), []
    for key, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise DrbenchError(f"expected_failures[{key!r}]: expected the reason as text, got {reason!r}; write one")
    known = set()
    for defense_class in classes:
        for name, run in checks_for(defense_class):
            test = f"{defense_class.__name__}-{name}"
            keys = (name.rpartition("-")[0], test.rpartition("-")[0], test)
            known.update(keys)
            key = next((key for key in keys if key in reasons), None)
            used.add(key)
            marks = pytest.mark.xfail(reason=reasons[key], strict=True) if key else ()
            parameters.append(pytest.param(partial(_for_pytest, run), id=test, marks=marks))
    for key in reasons.keys() - used:
        raise DrbenchError(f"expected_failures: there is no check {key!r}{did_you_mean(key, known)}")
    return pytest.mark.parametrize("check", parameters)


def _for_pytest(run: Callable[[], None]) -> None:
    import pytest

    try:
        run()
    except Skip as reason:
        pytest.skip(str(reason))
