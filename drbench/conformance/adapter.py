"""What surrounds `logits`: constructor, declarations, cost, storage, devices and documents."""

from __future__ import annotations

import inspect
import io
import math
import re
import sys
from itertools import pairwise
from numbers import Real
from pathlib import Path

import torch

from drbench.api import Defense
from drbench.conformance.case import TOLERANCE, Case, Skip, ends, expect, gaps, scores
from drbench.cost import measured_nfe

FROM_DATA = ("input_shape", "num_classes")  # constructor arguments that the data decides
PARAMETERS = 100_000
README_HEADINGS = ("What it is", "What is implemented", "Units", "Weights", "Run it", "Known traps")
SOURCE = re.compile(r"\b\d{4}\.\d{4,5}\b|\b(19|20)\d\d\b")  # an arXiv id, or the year of a citation


# ---- declarations ------------------------------------------------------------------------------------------


def check_constructor(case: Case) -> None:
    """No `*args` or `**kwargs`; every argument has a default, which is a JSON value."""
    name = case.defense_class.__name__
    for argument in list(inspect.signature(case.defense_class.__init__).parameters.values())[1:]:
        expect(
            argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD),
            f"{name}.__init__ takes {argument}: spell its arguments out, so that a misspelt config key is an error",
        )
        if argument.name in FROM_DATA:
            continue
        expect(
            argument.default is not argument.empty,
            f"{name}.__init__: argument {argument.name!r} has no default; give it one that reproduces the paper",
        )
        expect(
            _is_json(argument.default),
            f"{name}.__init__: the default of {argument.name!r} is a {type(argument.default).__name__}, "
            "which a config cannot hold; expected null, bool, number, string, list or dict: take a name "
            "and look the object up inside",
        )


def _is_json(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_json, value.values()))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def check_declarations(case: Case) -> None:
    """Every declaration is present and says something possible."""
    defense = case.fresh()
    sigmas = getattr(defense, "sigmas", None)
    # float32 of numpy is a `Real` too, but its 0.1 is not the 0.1 of a config.
    real = isinstance(sigmas, tuple) and all(isinstance(s, int | float) and math.isfinite(s) and s >= 0 for s in sigmas)
    expect(
        real and len(sigmas) > 0 and all(a < b for a, b in pairwise(sigmas)),
        f"sigmas: expected a non-empty, increasing tuple of int or float >= 0, got {sigmas!r}",
    )
    lost = [sigma for sigma in sigmas if not defense.accepts(sigma)]
    expect(not lost, f"accepts() is false for the declared levels {lost}: sigmas and accepts() must agree")
    for name, wanted in (("input_shape", case.shape), ("num_classes", case.num_classes)):
        got = getattr(defense, name, None)
        expect(got == wanted, f"{name}: expected {wanted!r}, as asked of tiny(), got {got!r}; set it in __init__")
    for name, wanted in (("gradient", ("exact", "surrogate", "none")), ("randomized", (True, False))):
        got = getattr(defense, name, None)
        expect(got in wanted, f"{name}: expected one of {', '.join(map(repr, wanted))}, got {got!r}")
    bound = defense.lipschitz
    expect(
        bound is None or (isinstance(bound, Real) and 0 <= bound < math.inf),
        f"lipschitz: expected None or a finite number >= 0, got {bound!r}",
    )
    citation = getattr(defense, "citation", None)
    expect(
        isinstance(citation, str) and citation.strip() != "",
        f"citation: expected a BibTeX key or arXiv id, got {citation!r}",
    )


def check_tiny_size(case: Case) -> None:
    """`tiny` has fewer than 100,000 parameters, so that two cores check it in seconds."""
    count = sum(parameter.numel() for parameter in case.fresh().parameters())
    expect(
        count < PARAMETERS,
        f"tiny has {count:,} parameters, expected fewer than {PARAMETERS:,}: narrow it, drop layers",
    )


# ---- cost --------------------------------------------------------------------------------------------------


def check_nfe(case: Case) -> None:
    """The rows that pass through each network, counted, are those that `nfe` declares (at most), at every level."""
    for sigma in case.fresh().sigmas:
        defense = case.fresh()  # hooks stay in it
        nfe = defense.nfe(sigma)
        expect(isinstance(nfe, dict), f'sigma {sigma:g}: nfe returns {nfe!r}, expected a dict, e.g. {{"network": 1}}')
        declared = {name: calls for name, calls in nfe.items() if calls}
        per_row, hidden = _counted(defense, sigma)
        within = all(calls <= declared.get(name, 0) for name, calls in per_row.items())
        expect(
            within if defense.nfe_varies else declared == per_row,
            f"sigma {sigma:g}: nfe declares {_calls(declared)} calls per row, counted were "
            f"{_calls(per_row)} in networks() ({', '.join(defense.networks()) or 'none'}): correct nfe, or list every "
            "network in networks()",
        )
        expect(
            not hidden,
            f"sigma {sigma:g}: `logits` runs {', '.join(hidden)} outside of networks() "
            f"({', '.join(defense.networks()) or 'none'}), so that its cost is not counted: list it there and in nfe, "
            "and call `network(...)`, not its methods",
        )


def _counted(defense: Defense, sigma: float) -> tuple[dict[str, float], list[str]]:
    """Rows of each network for one of `logits`; and modules with weights that run while none of `networks()` does."""
    networks, running, hidden = set(defense.networks().values()), [], {}

    def enter(module, args) -> None:
        if module in networks:
            running.append(module)
        elif not running and list(module.parameters(recurse=False)):
            hidden[names[module]] = True

    def leave(module, args, output) -> None:
        if module in networks:
            running.pop()

    names = {module: name for name, module in defense.named_modules()}
    for module in names:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    return measured_nfe(defense, sigma, rows=4), list(hidden)


def _calls(per_row: dict[str, float]) -> str:
    return ", ".join(f"{name}: {calls:g}" for name, calls in sorted(per_row.items())) or "no"


# ---- storage and devices -----------------------------------------------------------------------------------


def check_state_round_trip(case: Case) -> None:
    """The state dict, saved and loaded (weights only) into another miniature, carries the whole function."""
    defense, other, file = case.fresh(0), case.fresh(1), io.BytesIO()
    torch.save(defense.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for sigma in ends(defense):
        z = case.noisy(8, sigma)
        gap = float(gaps(scores(other, z, sigma), scores(defense, z, sigma)).max())
        expect(
            gap <= TOLERANCE,
            f"sigma {sigma:g}: after saving and loading the state dict the logits differ by {gap:.2g}: "
            "something outside of it matters; make it a parameter or a buffer (register_buffer)",
        )


def accelerator() -> torch.device | None:
    """The device that `check_devices` compares with the CPU, if there is one."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def check_devices(case: Case) -> None:
    """The same votes on the CPU and on CUDA for >= 99 % of rows."""
    device = accelerator()
    if device is None:
        raise Skip("no CUDA device on this machine")
    here, there = case.fresh(), case.fresh().to(device)
    for sigma in ends(here):
        z = case.noisy(256, sigma)
        votes = scores(there, z.to(device), sigma).argmax(1).cpu()
        share = float((votes == scores(here, z, sigma).argmax(1)).float().mean())
        expect(
            share >= 0.99,
            f"sigma {sigma:g}: {share:.1%} of votes on {device} equal those on the CPU, expected at least "
            "99%: look for tensors that are no buffers, and for random numbers made on the device",
        )


# ---- documents ---------------------------------------------------------------------------------------------


def check_documented(case: Case) -> None:
    """The module, or its package, cites its source; the README beside it has the headings of the template."""
    module = sys.modules[case.defense_class.__module__]
    file = getattr(module, "__file__", None)
    folder = Path(file).parent if file else None
    if "<locals>" in case.defense_class.__qualname__ or folder is None or not (folder / "__init__.py").exists():
        raise Skip("the class does not live in a package of files, so there is no README to look for")
    texts = [module.__doc__, getattr(sys.modules.get(module.__package__), "__doc__", None)]
    expect(
        any(text and SOURCE.search(text) for text in texts),
        f"{Path(file).name}: the module docstring names no source: cite the paper with its arXiv id or year",
    )
    readme = folder / "README.md"
    expect(
        readme.exists(),
        f"{folder.name}/README.md is missing; expected the headings {', '.join(README_HEADINGS)}",
    )
    headings = {heading.strip().lower() for heading in re.findall(r"^#+\s+(.*)$", readme.read_text("utf-8"), re.M)}
    missing = [heading for heading in README_HEADINGS if heading.lower() not in headings]
    expect(not missing, f"{folder.name}/README.md lacks the headings {', '.join(missing)}: write those sections")
