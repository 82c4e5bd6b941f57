"""The line above all panels of a figure, as wide as the figure. No display."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

LETTERS = 12  # of the size below that surely fit into an inch


def headline(figure: Figure, text: str) -> None:
    figure.suptitle(textwrap.fill(text, int(LETTERS * figure.get_figwidth())), fontsize=10)
