"""Writes a table to files of one stem, and what Markdown and LaTeX want escaped. No torch."""

from __future__ import annotations

from pathlib import Path

from pandas import DataFrame

from drbench.errors import DrbenchError

# what would change a table, escaped; underscores inside words are harmless in Markdown
MD = str.maketrans({"\n": " ", **{sign: f"\\{sign}" for sign in "\\|*`<[$~"}})
TEX = str.maketrans({"\n": " ", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                     "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}",
                     **{sign: f"\\{sign}" for sign in "&%$#_{}"}})  # fmt: skip


def save(stem: str | Path, table: DataFrame, markdown: str, latex: str | None = None) -> list[Path]:
    """Write `<stem>.md`, `<stem>.csv` (the frame) and, if given, `<stem>.tex`; the same table gives the same bytes."""
    stem, csv = Path(stem), table.to_csv(index=False, lineterminator="\n")
    texts = {".md": markdown, ".csv": csv} | ({} if latex is None else {".tex": latex})
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            stem.with_name(stem.name + suffix).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DrbenchError(f"cannot write table {stem}: {error.strerror}; choose another folder with --out") from error
    return [stem.with_name(stem.name + suffix) for suffix in texts]
