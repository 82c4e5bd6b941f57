"""Files in the layout of the official code (arXiv 2501.13094) to weights of drbench. No official file is public so far.

    python -m methods.rcm.convert OUT FILE [FILE ...]

writes OUT, a path that ends in .safetensors or a name of benchmarks/foreign.yaml such as imagenet/rcm-b, and prints the
section `defense` of a benchmark file. Each FILE is the state dict of the network that was tuned for one noise level
(.pt, .pth or .safetensors). Beside it, FILE.json holds what a state dict does not: "sigma"
(pixel units), and optionally "heads" (width / 64), "grid" (81) and "layernorm" (true above 32 pixels). One file alone
is also the format "rrcm" of `drbench.checkpoints.formats`, with these facts as its configuration.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from drbench import weights
from drbench.api import DrbenchError
from drbench.checkpoints import reading
from drbench.checkpoints.formats import Converted
from methods.rcm.network import Classifier, ViT

SIDE_CAR = {"sigma": float, "heads": int, "grid": int, "layernorm": bool}


def convert(files: list[Path]) -> tuple[dict[str, Tensor], dict]:
    """State dict and constructor arguments of the `RCM` that holds the networks of all files, by increasing sigma."""
    found = sorted((_read(Path(path), _side_car(Path(path))) for path in files), key=lambda one: one[1])
    sigmas, first = [sigma for _, sigma, _ in found], found[0][2]
    if len(set(sigmas)) < len(sigmas):
        raise DrbenchError(f"expected one file for each noise level, got sigmas {sigmas}; correct the side-cars")
    for _, sigma, args in found:
        if args != first:
            raise DrbenchError(f"expected one architecture, got {args} at sigma {sigma:g} but {first} at {sigmas[0]:g}")
    state = {f"classifiers.{i}.{key}": value for i, (own, _, _) in enumerate(found) for key, value in own.items()}
    return state, {**first, "sigmas": sigmas, "kl_weights": [0.0] * len(sigmas)}


def converted(path: Path, **facts) -> Converted:
    """The `RCM` of one noise level; `facts` as in a side-car, which is read if there are none."""
    state, sigma, args = _read(path, _checked(facts, path) if facts else _side_car(path))
    state = {f"classifiers.0.{key}": value for key, value in state.items()}
    return Converted(state, "defense", {**args, "sigmas": [sigma], "kl_weights": [0.0]})


def _read(path: Path, facts: dict) -> tuple[dict[str, Tensor], float, dict]:
    """Tensors of one file under our names, its sigma, and the constructor arguments that it implies."""
    # Pre-training alone uses the projector.
    state = {k: v for k, v in reading.tensors(path).items() if not k.startswith("base_model.projection_head.")}
    try:
        args = _shape(state, facts)
    except (KeyError, ValueError) as error:
        raise DrbenchError(
            f"{path}: expected a tuned network with base_model.cls_token, base_model.pos_embed, "
            f"base_model.patch_embed.proj.weight and linear_head.weight; {error} is missing or has an odd shape. "
            "A pre-trained network (no linear_head) must be tuned first"
        ) from error
    with torch.device("meta"):
        encoder = ViT(tuple(args["input_shape"]), args["patch"], args["width"], args["depth"], args["heads"])
        wanted = {key: value.shape for key, value in Classifier(encoder, args["num_classes"]).state_dict().items()}
    reading.match(wanted, state, path)
    return state, float(facts["sigma"]), args


def _side_car(path: Path) -> dict:
    place = Path(f"{path}.json")
    try:
        facts = json.loads(place.read_text())
    except (OSError, ValueError) as error:
        raise DrbenchError(
            f'{place}: expected a JSON object such as {{"sigma": 0.5}}, because the weights do not say what noise '
            f"they were tuned for: {error}"
        ) from error
    return _checked(facts, place)


def _checked(facts: object, place: Path) -> dict:
    if not isinstance(facts, dict) or "sigma" not in facts or facts.keys() - SIDE_CAR.keys():
        raise DrbenchError(f"{place}: expected an object with sigma and optionally heads, grid, layernorm; got {facts}")
    for key, value in facts.items():
        kind = SIDE_CAR[key]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise DrbenchError(f"{place}: expected {key} as {kind.__name__}, got {value!r}")
    return facts


def _shape(state: dict[str, Tensor], facts: dict) -> dict:
    """Constructor arguments from shapes and side-car."""
    width, channels, patch, _ = state["base_model.patch_embed.proj.weight"].shape
    tokens = state["base_model.pos_embed"].shape[1]
    side = patch * round((tokens - 2) ** 0.5)
    depth = len({key.split(".")[2] for key in state if key.startswith("base_model.blocks.")})
    return {
        "input_shape": [channels, side, side],
        "num_classes": len(state["linear_head.weight"]),
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": facts.get("heads", max(1, width // 64)),
        "layernorm": facts.get("layernorm", side > 32),
        "grid": facts.get("grid", 81),
    }


def main(words: list[str]) -> int:
    if len(words) < 2 or weights.place(words[0]) is None:
        print(__doc__)
        return 2
    try:
        state, args = convert([Path(word) for word in words[1:]])
        weights.write(
            words[0], state, {"files": words[1:], "licence": "that of the files", "role": "defense", "spec": args}
        )
    except DrbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"defense: {json.dumps({'name': 'rcm', 'args': args, 'checkpoint': [words[0]]})}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
