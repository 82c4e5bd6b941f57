"""What is wrong with a key of a benchmark file, in words: omegaconf would speak of its own classes and of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drbench.config.keys import Config, Train

WORDS = {
    int: "a whole number (without point or exponent)",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    list[float]: "a list of numbers",
    list[str]: "a list of texts",
    list[Any]: "a list",
    dict[str, Any]: "a mapping with text for keys",
}


def mistake(layers: Iterable[Mapping]) -> str | None:
    """The first key in these parts of a config that is unknown, or whose value has another type."""
    for layer in layers:
        for key, value in _leaves(layer):
            if any(_free(known, key) for known in _types()) or (key, value) == ("train", None):
                continue
            if any(known.startswith(f"{key}.") for known in _types()):
                return f"{key} has keys of its own: expected a mapping, got {value!r}"
            if key not in _types():
                return f"unknown key {key!r}{_near(key)}"
            if not _fits(key, value):
                return f"{key}: expected {_expected(_types()[key])}, got {value!r}"
    return None


@cache
def _types() -> dict[str, Any]:
    """Key -> type, of every key that is no section."""
    return dict(_typed(Config))


def _typed(section: type, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(section).items():
        below = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
        if below:
            yield from _typed(below, f"{above}{name}.")
        else:
            yield above + name, hint


def _leaves(part: Mapping, above: str = "") -> Iterator[tuple[str, Any]]:
    """Keys, in full, with their values; sections are opened."""
    for name, value in part.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in _types()):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _free(known: str, key: str) -> bool:
    """Whether the key lies in a mapping of which any key is taken, such as defense.args."""
    return key.startswith(f"{known}.") and dict in map(get_origin, (_types()[known], *get_args(_types()[known])))


def _fits(key: str, value: Any) -> bool:
    schema = OmegaConf.structured(Config(train=Train()))
    try:
        OmegaConf.update(schema, key, value)
    except (OmegaConfBaseException, TypeError):
        return False
    return True


def _expected(hint: Any) -> str:
    """Such as "a list of numbers or null"."""
    return WORDS.get(hint) or " or ".join(WORDS[each] for each in get_args(hint))


def _near(key: str) -> str:
    """The same word in another section, or a similar key; and what there is beside it."""
    section, _, name = key.rpartition(".")
    same = [known for known in _types() if known.rpartition(".")[2] == name]
    inside = [known for known in _types() if known.startswith(f"{section}.")]
    beside = list(dict.fromkeys(known.removeprefix(f"{section}.").partition(".")[0] for known in inside or _types()))
    prefix = f"{section}." if inside else ""
    near = same or [prefix + close for close in difflib.get_close_matches(name, beside, n=1)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    return f"{hint} available{' in ' * bool(inside)}{section if inside else ''}: {', '.join(beside)}"
