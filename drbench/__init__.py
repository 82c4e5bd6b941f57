"""drbench: diffusion-based robustness methods behind one interface, one certification engine, one table.

Importing this package loads no torch: heavy names are looked up on first use.

api          `Defense`, the interface that an adapter fulfils
registry     names of defenses, ours and those of other packages
conformance, testing
             checks of an adapter, and the suite that runs them
draws        random streams, keyed by image and block
evidence     what a run observes, and the certificate that follows
asking, cost
             one call of a defense, whose answer is looked at; network evaluations, counted
errors       mistakes that the user can mend

certifiers   from a defense to evidence
attacks      from a defense to adversarial examples
stats        from evidence to certificates, curves and intervals
norms, digests
             distances of adversarial examples, and whether they are allowed; hashes of names

data         data sets
classifiers  networks that classify pixels
diffusion    denoisers, samplers and their networks
specs        objects that a dict describes
recipe, training
             hyper-parameters of a training; the one loop
weights      weights on disk: manifest, hashes, safetensors
checkpoints  checkpoints of other projects, converted
files        where files of others lie, how they come, whether they hold
memory, cores
             memory of the host; threads with a core each

config       benchmark files
planning     what they will cost
jobs         what does their work
executors    where it is done: here, in other processes, on other machines
progress     how far it is: a bar, or lines
records      run folders, written, read back and verified

tables, plots
             runs as tables and as figures
papers       printed numbers beside measured ones
comparisons  one run against another, and claims of papers
gallery      pictures of what defenses make of images
report       runs as one HTML page

notebook     certification and attacks without benchmark files
cli, verbs   the command line, and what each verb does
catalogue, stock
             what there is: defenses, benchmark files, runs; weights and data sets
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
