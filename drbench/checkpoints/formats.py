"""Formats of other projects' checkpoints, and their conversion to weights of ours. Imports no torch until asked to."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

from drbench import weights
from drbench.errors import DrbenchError, did_you_mean
from drbench.files import fetching, foreign

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # of the converters: raised when the same file would give other tensors
ROLES = ("denoiser", "classifier", "defense")

# name -> "module:function"; a converter is called as function(path, **config) and returns `Converted`
FORMATS: dict[str, str] = {
    "diffusers": "drbench.checkpoints.diffusers_folder:convert",
    "edm": "drbench.checkpoints.edm:convert",
    "guided_diffusion": "drbench.checkpoints.adm:guided_diffusion",
    "huggingface": "drbench.checkpoints.classifiers:huggingface",
    "improved_diffusion": "drbench.checkpoints.adm:improved_diffusion",
    "jax_consistency": "drbench.checkpoints.jax_consistency:convert",
    "openai_consistency": "drbench.checkpoints.adm:openai_consistency",
    "resnet_cifar": "drbench.checkpoints.classifiers:resnet_cifar",
    "rrcm": "methods.rcm.convert:converted",
    "timm": "drbench.checkpoints.classifiers:timm",
    "wide_resnet": "drbench.checkpoints.classifiers:wide_resnet",
}


class Converted(NamedTuple):
    """A network of another project under our names.

    Attributes
    ----------
    state : dict of Tensor
        Without the prefix of its role.
    role : {"denoiser", "classifier", "defense"}
        What it is in a defense; "defense": the tensors of a whole defense.
    spec : dict
        What rebuilds it: the argument `denoiser` or `classifier` of a defense, or all its constructor arguments.
    """

    state: dict[str, Tensor]
    role: str
    spec: dict


def convert(path: str | Path, format: str, **config) -> Converted:
    """Read a file (or a folder, where the format is one) of another project.

    The caller has verified its hash. `config` is what the file does not say, by the names of its own project.

    Raises
    ------
    DrbenchError
        If the format is unknown, the file is damaged or unsafe, or its tensors do not fit the network of `config`.
    """
    if format not in FORMATS:
        raise DrbenchError(f"unknown checkpoint format {format!r}{did_you_mean(format, FORMATS)}")
    converter = resolve_name(FORMATS[format])
    try:
        return converter(Path(path), **config)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:  # odd content
        raise DrbenchError(f"{path}: format {format!r} cannot be read with {config}: {error}") from error


def save(
    converted: Converted, out: str | Path, source_sha256: str, format: str, source: str | Path = ""
) -> weights.Weights:
    """Write safetensors that a defense takes as `checkpoint`. The same input gives the same bytes.

    Its metadata "facts" say where it comes from: `source` (file name), `source_sha256`, `format`, `converter`, `role`
    and `spec`.

    Parameters
    ----------
    out : path that ends in .safetensors, or a name of the manifest
    source_sha256 : str
        Of the file that was converted.
    """
    prefix = "" if converted.role == "defense" else f"{converted.role}."
    facts = {
        "source": Path(source).name,
        "source_sha256": source_sha256,
        "format": format,
        "converter": VERSION,
        "role": converted.role,
        "spec": converted.spec,
    }
    return weights.write(str(out), {prefix + key: value for key, value in _apart(converted.state).items()}, facts)


def convert_listed(name: str) -> Path:
    """Bring a file of benchmarks/foreign.yaml under our names (needs torch); its hash is checked first."""
    about, source = foreign.entry(name), foreign.item(name)
    if left_open := [key for key, value in about.get("config", {}).items() if value == "???"]:
        raise DrbenchError(
            f"weights {name}: {', '.join(left_open)} was not published: write what your file has in place of ??? in "
            f"its entry in benchmarks/foreign.yaml, then drbench weights convert {name}"
        )
    content = fetching.verify(source).content
    if "format" not in about:
        raise DrbenchError(f"weights {name}: this version reads no such file; see its entry in benchmarks/foreign.yaml")
    out = foreign.own(name)
    out.path.parent.mkdir(parents=True, exist_ok=True)
    converted = convert(source.path, about["format"], **about.get("config", {}))
    save(converted, out.path, content.sha256, about["format"], source.path)
    fetching.note(out, f"{about['format']} of sha256 {content.sha256}")
    return out.path


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own: safetensors refuses tensors that share theirs."""
    apart, seen = {}, set()
    for key, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        shared = place in seen or tensor.untyped_storage().nbytes() != tensor.nbytes
        apart[key] = tensor.clone() if shared else tensor
        seen.add(place)
    return apart
