"""Which images of a split: an explicit, named rule that is printed with every number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from drbench.errors import DrbenchError


def choose(rule: str, ids: Sequence[int | str]) -> list[int]:
    """Positions in the split that a subset rule selects.

    Parameters
    ----------
    rule : str
        "all"; "firstN" (positions 0..N-1); "everyN" (positions 0, N, 2N, ...); "AtoB" (positions A..B-1);
        "ids:FILE" (one id a line, in the order of the file).
    ids : sequence
        Ids of the whole split.
    """
    if rule == "all":
        return list(range(len(ids)))
    if rule.startswith("ids:"):
        return _from_file(Path(rule.removeprefix("ids:")), ids)
    part = re.fullmatch(r"(\d+)to(\d+)", rule)
    if part:
        first, end = map(int, part.groups())
        if not first < end <= len(ids):
            raise DrbenchError(f"subset {rule!r}: expected positions A < B <= {len(ids)}, the size of the split")
        return list(range(first, end))
    match = re.fullmatch(r"(first|every)([1-9]\d*)", rule)
    if not match:
        raise DrbenchError(f"unknown subset {rule!r}; expected all, firstN, everyN, AtoB or ids:FILE, e.g. first100")
    number = int(match[2])
    if match[1] == "every":
        return list(range(0, len(ids), number))
    if number > len(ids):
        raise DrbenchError(f"subset {rule!r} asks for {number} images, the split has {len(ids)}")
    return list(range(number))


def label(split: str, rule: str) -> str:
    """How a subset is printed: "test", "test/first100"; a file of ids by its name and the hash of its content."""
    if rule.startswith("ids:"):
        path = Path(rule.removeprefix("ids:"))
        rule = f"ids:{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    return split if rule == "all" else f"{split}/{rule}"


def _from_file(path: Path, ids: Sequence[int | str]) -> list[int]:
    try:
        wanted = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DrbenchError(f"cannot read the list of image ids {path}: {error}") from error
    position = {str(image_id): i for i, image_id in enumerate(ids)}
    missing = [image_id for image_id in wanted if image_id not in position]
    if missing or not wanted or len(set(wanted)) < len(wanted):
        problem = (
            f"{len(missing)} ids are not in the split, first: {missing[0]}" if missing else "it is empty or repeats ids"
        )
        raise DrbenchError(f"list of image ids {path}: expected unique ids of the split, one a line; {problem}")
    return [position[image_id] for image_id in wanted]
