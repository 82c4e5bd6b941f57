"""Which images of a split: an explicit, named rule that is printed with every number. No torch.

Rules are the same for every data set. `subsets.yaml` knows, for those that publications use, how many images they are
and the hash of their ids, and it has names for lists that are no rule.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from drbench.digests import names_digest as digest
from drbench.errors import DrbenchError, did_you_mean
from drbench.files import places

HERE = Path(__file__).parent
RULES = "all, firstN, everyN, AtoB, randomNseedS or ids:FILE, e.g. first100"
__all__ = ["choose", "digest", "known", "label"]


@cache
def _parsed() -> dict:
    return yaml.safe_load((HERE / "subsets.yaml").read_text(encoding="utf-8"))


def known(name: str, split: str) -> dict[str, dict]:
    """rule or name -> facts: images, sha256 of the ids, and where present classes, list, used_by, notes."""
    return _parsed().get(name, {}).get(split, {})


def choose(rule: str, ids: Sequence[int | str], name: str = "", split: str = "") -> list[int]:
    """Positions in the split that a subset rule selects.

    Parameters
    ----------
    rule : str
        "all"; "firstN" (positions 0..N-1); "everyN" (positions 0, N, 2N, ...); "AtoB" (positions A..B-1);
        "randomNseedS" (`numpy.random.RandomState(S).choice(size, N, replace=False)`, DiffPure's way);
        "ids:FILE" (one id a line, in the order of the file); or a name that subsets.yaml has for the data set.
    ids : sequence
        Ids of the whole split.
    name, split : str
        Data set and split. Where the subset is known, its ids must have the known hash.
    """
    facts = known(name, split).get(rule, {})
    if "order" in facts:  # the rule counts in the order of ids, not in that of the folders
        by_id = sorted(range(len(ids)), key=lambda position: ids[position])
        chosen = [by_id[i] for i in _by_rule(facts["order"], ids, rule)]
    elif "list" in facts:
        names = (HERE / facts["list"]).read_text().split()
        chosen = _positions([facts["id"].format(int(n)) for n in names], ids, f"subset {name}/{rule}")
    else:
        chosen = _by_rule(rule, ids, rule, known(name, split))
    if facts and (len(chosen), digest(ids[i] for i in chosen)) != (facts["images"], facts["sha256"]):
        raise DrbenchError(
            f"subset {name}/{split}/{rule}: expected {facts['images']:,} images whose ids have the sha256 "
            f"{facts['sha256'][:12]}..., got {len(chosen):,} others: the files are not those of {name}, or "
            "in another order"
        )
    return chosen


def _by_rule(rule: str, ids: Sequence[int | str], asked: str, named: Iterable[str] = ()) -> list[int]:
    size = len(ids)
    if rule == "all":
        return list(range(size))
    if rule.startswith("ids:"):
        return _from_file(places.path(rule.removeprefix("ids:")), ids)
    if part := re.fullmatch(r"(\d+)to(\d+)", rule):
        first, end = map(int, part.groups())
        if not first < end <= size:
            raise DrbenchError(f"subset {rule!r}: expected positions A < B <= {size}, the size of the split")
        return list(range(first, end))
    match = re.fullmatch(r"(first|every)([1-9]\d*)|(random)([1-9]\d*)seed(\d{1,9})", rule)
    if not match:
        others = did_you_mean(asked, named) if named else ""
        raise DrbenchError(f"unknown subset {asked!r}; expected {RULES}{others}")
    number = int(match[2] or match[4])
    if match[1] == "every":
        return list(range(0, size, number))
    if number > size:
        raise DrbenchError(f"subset {asked!r} asks for {number} images, the split has {size}")
    if match[3]:
        return np.random.RandomState(int(match[5])).choice(size, number, replace=False).tolist()
    return list(range(number))


def label(split: str, rule: str) -> str:
    """How a subset is printed: "test", "test/first100"; a file of ids by its name and the hash of its content."""
    if rule.startswith("ids:"):
        path = places.path(rule.removeprefix("ids:"))
        rule = f"ids:{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    return split if rule == "all" else f"{split}/{rule}"


def _from_file(path: Path, ids: Sequence[int | str]) -> list[int]:
    try:
        wanted = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DrbenchError(f"cannot read the list of image ids {path}: {error}") from error
    return _positions(wanted, ids, f"list of image ids {path}")


def _positions(wanted: list[str], ids: Sequence[int | str], what: str) -> list[int]:
    position = {str(image_id): i for i, image_id in enumerate(ids)}
    missing = [image_id for image_id in wanted if image_id not in position]
    if missing or not wanted or len(set(wanted)) < len(wanted):
        problem = (
            f"{len(missing)} ids are not in the split, first: {missing[0]}" if missing else "it is empty or repeats ids"
        )
        raise DrbenchError(f"{what}: expected unique ids of the split, one a line; {problem}")
    return [position[image_id] for image_id in wanted]
