"""How each method looks in every figure and in the report: colour, dash and symbol. No matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from drbench.records.record import Run

# Okabe and Ito 2008 without its yellow, which is lost on white, and three more; the floors are grey
COLOURS = {
    "adversarial_training": "#56B4E9", "consistency": "#D55E00", "constant": "#808080", "denoised": "#009E73",
    "diffpure": "#CC79A7", "diffusion_classifier": "#0072B2", "multiscale": "#E69F00", "noise_augmented": "#C2185B",
    "rcm": "#6A3D9A", "undefended": "#333333",
}  # fmt: skip
DASHES = (
    "-", (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.2, 1)), (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)), (0, (10, 2)),
    (0, (3, 3)), (0, (1.2, 3)), (0, (8, 1.5, 3, 1.5)), (0, (5, 1, 5, 1, 1.2, 1)), (0, (10, 1.5, 1.2, 1.5)),
    (0, (2.5, 1)), (0, (8, 1.5, 3, 1.5, 3, 1.5)),
)  # fmt: skip
MARKERS = "os^DvPX*<>hpd"  # as many as dashes
SHADES = (0, 0.0), (0, 0.45), (255, 0.4)  # the grey that is mixed in, and its share: the colour, darker, lighter
EACH = len(DASHES) * len(SHADES)  # looks of one colour: the two numbers have no common factor


class Look(NamedTuple):
    colour: str
    dash: str | tuple
    marker: str

    @property
    def line(self) -> dict:
        """As matplotlib takes it for lines without symbols."""
        return {"color": self.colour, "linestyle": self.dash}

    @property
    def point(self) -> dict:
        """As matplotlib takes it for symbols without lines."""
        return {"color": self.colour, "marker": self.marker}


def of(runs: Iterable[Run]) -> dict[tuple[str, str], Look]:
    """Looks of the (defense, variant) of these runs; the same runs give the same looks in any order."""
    return _choose(_methods(runs))


def of_lines(lines: Sequence[tuple], runs: Iterable[Run]) -> dict[tuple, Look]:
    """The same for lines that begin with (defense, variant): the first of a method has its look."""
    first = {line[:2]: line for line in reversed(lines)}
    keys = {line: line[:2] if first[line[:2]] == line else line for line in lines}
    looks = _choose([*_methods(runs), *keys.values()])
    return {line: looks[key] for line, key in keys.items()}


def _methods(runs: Iterable[Run]) -> list[tuple[str, str]]:
    return [(run.header["defense"]["name"], run.header["defense"]["variant"]) for run in runs]


def _choose(keys: Iterable[tuple[Hashable, ...]]) -> dict[tuple, Look]:
    """No two alike, of 390: the colour is that of the defense, its keys differ in shade, dash and symbol.

    Where all of a colour are taken it is the next colour. Methods come before lines, whose keys are longer.
    """
    colours, found, taken = list(COLOURS.values()), {}, Counter()
    for key in sorted(set(keys), key=lambda key: (len(key), key)):
        home = _home(key[0])
        colour = next((c % len(colours) for c in range(home, home + len(colours))
                       if taken[c % len(colours)] < EACH), home)  # fmt: skip
        number = (colour + taken[colour]) % len(DASHES)  # defenses with one variant differ in more than colour
        found[key] = Look(_shade(colours[colour], taken[colour]), DASHES[number], MARKERS[number])
        taken[colour] += 1
    return found


def _shade(colour: str, number: int) -> str:
    grey, share = SHADES[number % len(SHADES)]
    return "#" + "".join(f"{round((1 - share) * part + share * grey):02X}" for part in bytes.fromhex(colour[1:]))


def _home(defense: str) -> int:
    """Place of its colour; of a defense that is not ours by its name alone."""
    names = list(COLOURS)
    return names.index(defense) if defense in names else crc32(defense.encode()) % len(names)
