"""What the defenses of recorded runs make of images: asked again, on the noise of the record. The half with torch.

The noise that is shown is that of the first draw of the estimation (block 0), or of the first final evaluation of an
attack: one of those that were counted. Classes, shares and radii are those of the record, not asked again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from drbench import config, norms, weights
from drbench.api import Defense, Draws, DrbenchError
from drbench.attacks import views
from drbench.attacks.oracle import Keys
from drbench.attacks.threat import threat
from drbench.certifiers import kinds
from drbench.draws import Span, block_key
from drbench.gallery import contents, words
from drbench.gallery.contents import Gallery, Grid, Tile
from drbench.jobs import build
from drbench.jobs.worker import prepare
from drbench.records import examples
from drbench.records.record import Run

BAND = 3  # images side by side under attack


class Asked(NamedTuple):
    """What one draw of one image was: with noise, as classified (None: the same, there is no purifier), its class."""

    noisy: np.ndarray
    purified: np.ndarray | None
    answer: int


class Opened(NamedTuple):
    """A run with its defense built again."""

    run: Run
    cell: DictConfig
    defense: Defense
    x: Tensor  # (B, C, H, W) clean images, on the host
    ids: Sequence[int | str]


def gather(runs: Sequence[Run], wanted: Sequence[str] | None = None, first: int | None = None) -> Gallery:
    """Pictures and words about images of certification and attack runs.

    Parameters
    ----------
    runs : sequence of Run
        On the same data. Their defenses are built as the runner does, one after the other.
    wanted : sequence of str, optional
        Ids of images; by default the `first` ones that all runs have done.

    Raises
    ------
    DrbenchError
        If an image is not in a run, weights or data are not those of the run, or examples are missing or damaged.
    """
    ids = contents.choose(runs, wanted, first)
    certified, attacked = ([run for run in runs if run.task == task] for task in ("certify", "attack"))
    for run in certified:
        if run.header["engine"]["certifier"] not in ("gaussian", "cascade"):
            raise DrbenchError(f"{run.folder}: expected a run with recorded votes under noise, got one of certifier "
                               f"{run.header['engine']['certifier']!r}, which has no noisy images to show")  # fmt: skip
    grids = ([_certified(certified, ids)] if certified else []) + (_attacked(attacked, ids) if attacked else [])
    return Gallery(tuple(grids), words.note(runs), words.sidecar(runs, ids, bool(wanted)))


def open_run(run: Run, ids: Sequence[int | str]) -> Opened:
    """Build the defense of a run, with weights and data verified against its header."""
    (cell,) = config.load(run.folder / "config.yaml")
    checkpoints = {found.name: found.sha256 for found in map(weights.resolve, cell.defense.checkpoint)}
    if checkpoints != run.header["defense"]["checkpoints"]:
        raise DrbenchError(f"{run.folder}: the weights are not those of the run; restore them, or run it anew")
    images = build.images(cell)
    if images.sha256 != run.header["data"]["sha256"]:
        raise DrbenchError(f"{run.folder}: the images are not those of the run; check data.root and the data set")
    places = [images.ids.index(name) for name in ids]
    return Opened(run, cell, prepare(cell, images, {}), images.x[places], ids)


def draws_of(run: Run, sigma: float, ids: Sequence[int | str]) -> list[Span]:
    """The first draw of the estimation of each image: the first row of block 0, see `certifiers.engine`."""
    seed = run.header["engine"]["seed"]
    return [Span(block_key(seed, name, sigma, "estimate", 0), 0, 1) for name in ids]


def noisy(run: Run, sigma: float, ids: Sequence[int | str], x: Tensor) -> Tensor:
    """(B, C, H, W) the noisy copies of that draw, bit by bit those that were voted on."""
    smoothing = kinds.smoothing(run.header["engine"])
    copies, _ = smoothing.copies(draws_of(run, sigma, ids), x.flatten(1).numpy(), sigma)
    return torch.from_numpy(copies).view(x.shape)


@torch.no_grad()
def _ask(defense: Defense, z: Tensor, sigma: float, spans: Sequence[Span]) -> list[Asked]:
    """What the defense makes of rows that carry noise, and answers to them."""
    device, purified = defense.device, [None] * len(z)
    answers = defense.logits(z.to(device), sigma, Draws(spans, device)).argmax(1).tolist()
    if hasattr(defense, "purify"):
        purified = defense.purify(z.to(device), sigma, Draws(spans, device)).float().cpu().numpy()
    return [Asked(*each) for each in zip(z.cpu().numpy(), purified, answers, strict=True)]


# ---- certification --------------------------------------------------------------------------------------------------


def _certified(runs: Sequence[Run], ids: Sequence[int | str]) -> Grid:
    """A row per image and noise level: clean, with noise, and a column per method."""
    columns, inputs, clean = {}, {}, {}
    for run in runs:
        opened = open_run(run, ids)
        clean |= dict(zip(ids, opened.x.numpy(), strict=True))
        title = _free_column(columns, run)
        for sigma in words.levels(run):
            here = [name for name in ids if words.asked_at(run, name, sigma)]
            x = opened.x[[ids.index(name) for name in here]]
            spans = draws_of(run, sigma, here)
            asked = _ask(opened.defense, noisy(run, sigma, here, x), sigma, spans) if here else []
            columns[title] |= {(name, sigma): words.missing(run, name, sigma) for name in ids}
            for name, seen in zip(here, asked, strict=True):
                columns[title][name, sigma] = _voted(run, name, sigma, seen)
                inputs.setdefault(words.noise_key(run), {})[name, sigma] = seen.noisy
    cascade = any(run.header["engine"]["certifier"] == "cascade" for run in runs)  # which goes from the largest down
    sigmas = sorted({sigma for column in columns.values() for _, sigma in column}, reverse=cascade)
    rows = []
    for name in ids:
        for number, sigma in enumerate(sigmas):
            first = Tile(clean[name], words.image(runs[0], name)) if number == 0 else None
            noises = [Tile(own.get((name, sigma)), (f"σ = {sigma:g}",)) for own in inputs.values()]
            none = Tile(None, (f"no run at σ = {sigma:g}",))
            rows.append((first, *noises, *(column.get((name, sigma), none) for column in columns.values())))
    titles = ("clean", *(words.noise_title(key, len(inputs)) for key in inputs), *columns)
    return Grid(titles, (), tuple(rows), row_group=len(sigmas))


def _free_column(columns: dict, run: Run) -> str:
    """Title of the column of a run, made if need be: runs of one method at other noise levels share it."""
    title, number = words.method(run), 1
    while any(sigma in {level for _, level in columns.get(title, {})} for sigma in words.levels(run)):
        number += 1
        title = f"{words.method(run)} #{number}"
    columns.setdefault(title, {})
    return title


def _voted(run: Run, name: int | str, sigma: float, seen: Asked) -> Tile:
    lines, verdict = words.votes(run, name, sigma)
    plain = () if seen.purified is not None else (words.PLAIN,)
    pixels = seen.noisy if seen.purified is None else seen.purified
    return Tile(pixels, (*lines, f"this draw: {seen.answer}", *plain), verdict)


# ---- attacks --------------------------------------------------------------------------------------------------------


def _attacked(runs: Sequence[Run], ids: Sequence[int | str]) -> list[Grid]:
    """A row per run and three columns per image: adversarial, its difference to the clean image, what is classified."""
    found, clean = {}, {}
    for run in runs:
        opened = open_run(run, ids)
        clean |= dict(zip(ids, opened.x.numpy(), strict=True))
        found[contents.name_of(run)] = _tiles(opened)
    grids = []
    for at in range(0, len(ids), BAND):
        band = ids[at : at + BAND]
        top = [part for name in band for part in (Tile(clean[name], words.image(runs[0], name)), None, None)]
        grids.append(Grid((), ("clean",), (tuple(top),), column_group=3))
        rows = tuple(tuple(tile for name in band for tile in tiles[name]) for tiles in found.values())
        heads = tuple(words.threat(run) for run in runs)
        grids.append(Grid(("adversarial", "difference", "as classified") * len(band), heads, rows, column_group=3))
    return grids


def _tiles(opened: Opened) -> dict[int | str, tuple[Tile, Tile, Tile]]:
    run, ids, x, engine = opened.run, opened.ids, opened.x, opened.run.header["engine"]
    stored = _examples(run, ids)
    kept = torch.from_numpy(np.stack([stored[name] for name in ids]))
    x_adv = threat(engine["norm"], engine["eps"]).image(kept, x)
    delta = (x_adv - x).numpy()
    factor = magnification(float(np.abs(delta).max()))
    spans = Keys(engine["seed"], tuple(ids), "evaluate").spans(0, 1)
    seen = [None] * len(ids)
    if not opened.cell.attack.cascade:  # which asks at several levels
        seen = _ask(opened.defense, views.noisy(x_adv, engine["sigma"], spans), engine["sigma"], spans)
    tiles = {}
    for name, image, change, asked in zip(ids, x_adv.numpy(), delta, seen, strict=True):
        lines, verdict = words.answers(run, name)
        difference = Tile(0.5 + factor * change, (*words.magnified(factor), words.found(run, name)))
        tiles[name] = (Tile(image, lines, verdict), difference, _classified(asked, not engine["deterministic"]))
    return tiles


def _classified(asked: Asked | None, said: bool) -> Tile:
    if asked is None:
        return Tile(None, ("several noise levels",))
    answer = (f"this draw: {asked.answer}",) if said else ()
    if asked.purified is None:
        return Tile(asked.noisy, (*answer, words.PLAIN))
    return Tile(asked.purified, answer)


def _examples(run: Run, ids: Sequence[int | str]) -> dict[int | str, np.ndarray]:
    """Stored examples, each the one that its row names."""
    stored = examples.read(run.folder)
    if not stored:
        raise DrbenchError(f"{run.folder}: expected stored examples (examples.npz), found none; run the attack anew")
    for name in ids:
        if name not in stored or norms.digest(stored[name][2]) != words.evidence(run, name).example:
            raise DrbenchError(f"{run.folder}: the stored example of image {name} is missing, or not the recorded one; "
                               "`drbench verify` says what else is wrong")  # fmt: skip
    return {name: stored[name][2] for name in ids}


def magnification(largest: float) -> float:
    """The largest factor of one digit that keeps 0.5 + factor * difference in [0, 1]; 1 for no difference."""
    if largest <= 0:
        return 1.0
    exact = 0.5 / largest * (1 + 1e-6)  # 4.0 for 2/16 in float32
    power = 10.0 ** math.floor(math.log10(exact))
    return float(f"{math.floor(exact / power) * power:.1g}")
