"""drbench: diffusion-based robustness methods behind one interface, one certification engine, one table.

Importing this package loads no torch: heavy names are looked up on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_LAZY = {
    "Certificate": "drbench.evidence",
    "Defense": "drbench.api",
    "Draws": "drbench.draws",
    "DrbenchError": "drbench.errors",
    "attack": "drbench.notebook",
    "certify": "drbench.notebook",
    "load_data": "drbench.data",
    "load_defense": "drbench.notebook",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'drbench' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), {"load_data": "load"}.get(name, name))


def __dir__():
    return [*globals(), *__all__]
