"""Encoded images and labels of a parquet file in the layout of Hugging Face's image data sets. No torch."""

from __future__ import annotations

from pathlib import Path

from drbench.errors import DrbenchError


def read(path: Path, label: str) -> tuple[list[bytes], list[int]]:
    """Content of each image file, and its label from the column `label`. The column `img` holds {bytes, path}."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["img", label])
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table[label].to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError, AttributeError) as error:
        raise DrbenchError(f"{path}: not readable as images in parquet ({error}); get the file again") from error
    if not (all(type(image) is bytes for image in encoded) and all(type(label) is int for label in labels)):
        raise DrbenchError(
            f"{path}: images or labels are missing in it, or are not bytes and integers; get the file again"
        )
    return encoded, labels
