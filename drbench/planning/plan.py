"""What a sweep will cost, measured before it runs: rows, network evaluations, time, memory, disk.

Two warm batches of real noisy images are timed in the engine. Their votes also tell, roughly, how soon a mode that
stops early would stop. Weights and images that are not here are replaced by random ones: they take the same time.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig

from drbench import config, cost
from drbench.api import Defense, Evidence
from drbench.certifiers import kinds
from drbench.certifiers.batch_size import find_batch_rows
from drbench.certifiers.batching import Forward, workers
from drbench.certifiers.engine import Request, count_votes
from drbench.data import Images, shape
from drbench.data.subsets import choose, label
from drbench.evidence import Certificate, Stage
from drbench.files import datasets
from drbench.jobs import build, execution, header, needs
from drbench.jobs.worker import prepare
from drbench.planning import attack_planning, first_calls
from drbench.planning.effort import BACKWARD
from drbench.records import record
from drbench.records.record import Row
from drbench.stats import stopping

DRAWS_PER_IMAGE, MOST_IMAGES, STREAMS = 50, 50, 20  # of the pilot; simulated streams per image of it
PATIENCE = 0.25  # seconds of a draw above which no whole one is timed: a pilot makes hundreds
STORED = 450  # bytes of an attacked image's line, about; its two images come on top


class Cost(NamedTuple):
    """What one run costs; rows are noisy draws, evaluations are network calls on one row each."""

    name: str
    sigmas: str
    images: int
    rows: float = 0.0  # of the config's own mode if it is fixed: all scales of a cascade
    evaluations: float = 0.0
    seconds: float = 0.0
    early_rows: float = math.nan  # mode sequential; NaN where there is none
    early_seconds: float = math.nan
    memory: float = 0.0  # bytes, peak of the process or of the accelerator
    disk: float = 0.0  # bytes
    pilot: int = 0  # images behind the estimate of early_rows
    random: str = ""  # "data", "weights" or both, that were not here
    attack: bool = False  # then its rows are evaluations of the whole defense
    slow: bool = False  # then seconds are those of single calls times their number


def measure(cells: Sequence[DictConfig]) -> list[Cost]:
    """Cost of each resolved config; of certifications in mode fixed and in mode sequential."""
    needs.require_settings(cells)
    resident: dict = {}
    return [_measure(cell, resident) for cell in cells]


def _measure(cell: DictConfig, resident: dict) -> Cost:
    cell, images, count, absent = _stand_ins(cell)
    defense, scales, attack = prepare(cell, images, resident), config.levels(cell), cell.task == "attack"
    name = " ".join(part for part in (cell.defense.name, cell.defense.variant) if part)
    name += f" {cell.attack.norm} {cell.attack.eps}" if attack else ""
    line = STORED + 2 * images.x[0].nbytes if attack else _line(header.engine(cell, images, defense), scales, images)
    sigmas = ", ".join(f"{sigma:g}" for sigma in scales)
    about = Cost(name, sigmas, count, disk=count * line, random=absent, attack=attack)
    draws = {sigma: first_calls.seconds_per_draw(defense, sigma) for sigma in scales}
    if max(draws.values()) > PATIENCE:
        about = _by_calls(about, cell, images, defense, draws)
    elif attack:
        rows, evaluations, seconds = attack_planning.measure(cell, images, count, defense)
        about = about._replace(rows=rows, evaluations=evaluations, seconds=seconds)
    else:
        about = _by_pilot(about, cell, images, defense)
    return about._replace(memory=max(about.memory, _peak(defense)))


def _by_calls(about: Cost, cell: DictConfig, images: Images, defense: Defense, draws: dict[float, float]) -> Cost:
    """Where a pilot would take too long: by the seconds of a draw at each noise level."""
    calls = {sigma: sum(defense.nfe(sigma).values()) for sigma in draws}
    if about.attack:
        gradients, forwards = attack_planning.counted(cell, images, about.images, defense)
        rows, evaluations = gradients + forwards, (gradients + forwards) * max(calls.values())
        seconds = ((1 + BACKWARD) * gradients + forwards) * max(draws.values())
    else:
        drawn = about.images * config.draws(cell)
        rows, evaluations, seconds = (drawn * each for each in (len(draws), sum(calls.values()), sum(draws.values())))
    return about._replace(rows=rows, evaluations=evaluations, seconds=seconds, slow=True)


def _by_pilot(about: Cost, cell: DictConfig, images: Images, defense: Defense) -> Cost:
    """Of a certification, by timed batches at each noise level."""
    spec, batch_rows, scales = cell.certify, cell.run.batch_rows, config.levels(cell)
    if batch_rows == "auto":
        batch_rows = find_batch_rows(defense, spec.sigma, about.images * config.draws(cell) // workers(defense.device))
    if cell.run.compile:
        execution.compile_networks(defense, cell.run.cuda_graphs)
    engine = header.engine(cell, images, defense)
    drawn = about.images * config.draws(cell)
    pilot, seconds, calls, memory = [], 0.0, 0.0, 0.0
    for sigma in scales:
        pilot, rate = _pilot(defense, images, engine, sigma, batch_rows)
        memory = max(memory, _peak(defense))
        seconds += drawn / rate
        calls += sum(cost.measured_nfe(defense, sigma).values())
    early = math.nan
    if spec.kind == "gaussian" and not about.random:
        early = engine["n0"] + _expected_draws(cell, pilot)
    return about._replace(
        rows=drawn * len(scales), evaluations=drawn * calls, seconds=seconds, memory=memory, pilot=len(pilot),
        early_rows=about.images * early, early_seconds=seconds * early / config.draws(cell),
    )  # fmt: skip


def _stand_ins(cell: DictConfig) -> tuple[DictConfig, Images, int, str]:
    """The cell without weights that are not here, its images or random ones, how many it asks for, what is random."""
    absent = sorted({need.kind for need in needs.missing([cell])})
    if "weights" in absent:
        cell = cell.copy()
        cell.defense.checkpoint, cell.attack.sources = [], None
    if "data" not in absent:
        images = build.images(cell)
        return cell, images, len(images), " and ".join(absent)
    about, known = datasets.entry(cell.data.name), datasets.count(cell.data.name, cell.data.split)
    if known is None:
        needs.require([cell])
    everything = choose(cell.data.subset, range(known))
    ids, count = everything[:MOST_IMAGES], len(everything)
    x = torch.rand(
        len(ids), *shape(cell.data.name, cell.data.preprocessing), generator=torch.Generator().manual_seed(0)
    )
    y, subset = torch.zeros(len(ids), dtype=torch.int64), label(cell.data.split, cell.data.subset)
    return cell, Images(x, y, tuple(ids), cell.data.name, subset, about["classes"]), count, " and ".join(absent)


def _pilot(defense: Defense, images: Images, engine: dict, sigma: float, batch_rows: int) -> tuple[list, float]:
    """(votes for the leading class, draws) of images spread over the subset; and rows per second of the engine."""
    forward = Forward(defense, sigma, batch_rows)
    total = 2 * batch_rows * workers(defense.device)
    chosen = np.linspace(0, len(images) - 1, min(MOST_IMAGES, len(images), max(1, total // DRAWS_PER_IMAGE)), dtype=int)
    draws = -(-total // len(chosen))
    streams = {"seed": engine["seed"], "block": engine["block"], "smoothing": kinds.smoothing(engine)}
    warm = [Request(int(chosen[0]), "warm-up", "plan", batch_rows * workers(defense.device))]
    list(count_votes(forward, images.x, warm, **streams))
    requests = [Request(int(row), images.ids[row], "plan", draws) for row in chosen]  # a stage of its own
    start = time.perf_counter()
    votes = list(count_votes(forward, images.x, requests, **streams))
    rate = draws * len(chosen) / (time.perf_counter() - start)
    return [(max(found.counts.values(), default=0), draws) for found in votes], rate


def _expected_draws(cell: DictConfig, pilot: Sequence[tuple[int, int]]) -> float:
    """Mean draws of mode sequential, simulated for shares that the pilot's votes leave possible."""
    spec = cell.certify
    about = stopping.plan("sequential", spec.sigma, spec.n, spec.alpha, spec.radii, spec.give_up, spec.noise)
    rule = stopping.rule(
        "sequential", [radius / spec.sigma for radius in about["radii"]], spec.n, spec.alpha,
        give_up=spec.give_up, block=spec.block, sequence=spec.sequence, noise=spec.noise,
    )  # fmt: skip
    rng, used = np.random.Generator(np.random.Philox(key=0)), []
    for votes, draws in pilot:
        for share in rng.beta(votes + 0.5, draws - votes + 0.5, STREAMS):
            used.append(stopping.simulate(rule, share, rng)[1])
    return float(np.mean(used))


def _peak(defense: Defense) -> float:
    if defense.device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(defense.device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _line(engine: dict, scales: Sequence[float], images: Images) -> int:
    """Bytes of a recorded image with votes for three classes at each scale."""
    n0, n = engine["n0"], engine["n"]
    stages = tuple(Stage(sigma, {0: n0}, n0, {0: n - 2 * (n // 3), 1: n // 3, 2: n // 3}, n) for sigma in scales)
    row = Row(images.ids[-1], 0, Evidence(stages), Certificate(0, 0.123456789, {"p_lower": 0.987654321}), 0.123)
    return len(record.encode(row.to_json()))


def render(costs: Sequence[Cost]) -> str:
    """A table with a line per run and their sum; times on this machine, as it is now."""
    head = ("RUN", "SIGMA", "IMAGES", "ROWS", "EVALUATIONS", "HOURS", "SEQUENTIAL ROWS", "HOURS", "MEMORY", "DISK")
    lines = [head]
    for each in costs:
        lines.append((each.name, each.sigmas, f"{each.images:,}", *_numbers([each])))
    lines.append(("all", "", "", *_numbers(costs)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    attacks, pilots, notes = [each for each in costs if each.attack], [each.pilot for each in costs if each.pilot], ""
    if len(attacks) < len(costs):
        notes = "ROWS: noisy draws, selection included, in mode fixed; of a cascade if every image needs every scale.\n"
    if pilots:
        notes += (
            f"SEQUENTIAL: estimated from the votes of {min(pilots)} or more images in the timed batches. Cascades "
            "have no such mode and are left out of its sum.\n"
        )
    if attacks:
        notes += (
            "ROWS of an attack: evaluations of the defense, with and without a gradient, verdicts and audit included; "
            "what it takes if no image breaks early.\n"
        )
    notes += "MEMORY: peak of this process, or reserved on the accelerator."
    absent = dict.fromkeys(f"{each.random} of {each.name}" for each in costs if each.random)
    notes += "".join(f"\nNot here, and replaced by random ones: {each}." for each in absent)
    if slow := list(dict.fromkeys(each.name for each in costs if each.slow)):
        notes += (
            f"\nA draw is too slow here for a trial run: {', '.join(slow)}. Hours are those of one call of each "
            f"network times its calls, a gradient taken for {BACKWARD} more: rough, and without SEQUENTIAL."
        )
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([*text, notes])


def _numbers(costs: Sequence[Cost]) -> tuple[str, ...]:
    def total(field: str) -> float:
        return float(np.nansum([getattr(each, field) for each in costs]))

    early = [each for each in costs if each.early_rows == each.early_rows]
    hours = (f"{total(field) / 3600:.3g}" for field in ("seconds", "early_seconds"))
    fixed, sequential = hours
    saved = (f"{total('early_rows'):,.0f}", sequential) if early else ("-", "-")
    memory = f"{max(each.memory for each in costs) / 2**20:,.0f} MiB"
    return (f"{total('rows'):,.0f}", f"{total('evaluations'):,.0f}", fixed, *saved, memory,
            f"{total('disk') / 2**20:.2f} MiB")  # fmt: skip
