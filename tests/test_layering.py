"""Who may import whom, read from the source; and what must not load torch, seen in child processes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import make_cascade, make_run

ROOT = Path(__file__).parents[1]
LEAVES = {"errors"}
THIRD_PARTY = {"torch", "numpy", "scipy", "pandas", "matplotlib", "omegaconf", "yaml", "diffusers", "safetensors",
               "sklearn", "tqdm", "lpips", "torchvision", "pytest", "pyarrow", "PIL", "ray", "submitit", "wandb",
               "mlflow", "timm", "transformers", "msgpack", "filelock", "huggingface_hub"}  # fmt: skip

# module (or package, with a dot at the end) -> what of ours, and of others, it may import anywhere in its source
MAY_IMPORT = {
    "__init__": (set(), set()),
    "__main__": ({"cli"}, set()),
    "errors": (set(), set()),
    "recipe": (LEAVES, set()),
    "progress": (set(), {"tqdm"}),
    "evidence": (LEAVES, set()),
    "draws": (set(), {"torch", "numpy"}),
    "norms": (LEAVES, {"numpy"}),
    "api": (LEAVES | {"draws", "evidence", "memory"}, {"torch"}),
    "sequential": (LEAVES, {"scipy"}),
    "noises": (LEAVES, {"scipy"}),
    "stats": (LEAVES | {"evidence", "noises", "sequential"}, {"numpy", "scipy"}),
    "stopping": ({"evidence", "noises", "sequential", "stats"}, {"numpy", "scipy"}),
    "record": (LEAVES | {"evidence"}, set()),
    "verify": (LEAVES | {"evidence", "noises", "record", "sequential", "stats", "stopping", "verify_attack"}, set()),
    "verify_attack": (LEAVES | {"examples", "norms", "record", "robustness"}, {"numpy"}),
    "robustness": (LEAVES | {"evidence", "stats"}, {"numpy"}),
    "examples": (LEAVES | {"norms", "record"}, {"numpy"}),
    "registry": (LEAVES, set()),
    "protocols": (LEAVES, {"yaml"}),
    "config": (LEAVES | {"attacks", "norms", "protocols", "recipe"}, {"omegaconf", "yaml"}),
    "places": (set(), {"yaml"}),
    "download": (LEAVES | {"progress"}, set()),
    "fetching": (LEAVES | {"download"}, {"filelock", "huggingface_hub"}),
    "foreign": (LEAVES | {"checkpoints", "fetching", "places"}, set()),
    "weights": (LEAVES | {"fetching", "foreign", "places"}, {"yaml", "safetensors", "torch"}),
    "datasets": (LEAVES | {"weights"}, {"yaml"}),
    "data_files": (LEAVES | {"datasets", "fetching"}, set()),
    "stock": (LEAVES | {"data_files", "datasets", "fetching", "foreign"}, set()),
    "effort": ({"attacks", "config", "data", "datasets", "places"}, {"omegaconf"}),
    "reproduce": (LEAVES
                  | {"config", "effort", "needs", "places", "published", "record", "robust_tables", "runner", "summary"}
                  | {"tables"}, {"omegaconf"}),
    "needs": (LEAVES | {"data_files", "foreign", "weights"}, {"omegaconf"}),
    "quantities": (set(), {"numpy", "scipy"}),
    "summary": (LEAVES | {"evidence", "noises", "quantities", "record", "stats"}, {"numpy", "pandas"}),
    "saving": (LEAVES, {"pandas"}),
    "compare": (LEAVES | {"record", "saving", "stats", "summary"}, {"pandas"}),
    "halting": ({"record", "stats", "summary"}, {"pandas"}),
    "logs": (LEAVES | {"evidence", "record", "stats"}, {"scipy"}),
    "beside": ({"summary"}, {"pandas"}),
    "tables": (LEAVES | {"beside", "saving", "summary"}, {"pandas"}),
    "plots": (LEAVES | {"record", "summary"}, {"numpy", "pandas", "matplotlib"}),
    "pareto": (LEAVES | {"record", "saving", "summary"}, {"pandas"}),
    "pareto_plot": (LEAVES | {"pareto", "plots", "record", "summary"}, {"pandas", "matplotlib"}),
    "share_plot": (LEAVES | {"plots", "quantities", "record", "summary"}, {"numpy", "pandas", "matplotlib"}),
    "robust_tables": (LEAVES | {"record", "robustness", "saving", "summary", "tables"}, {"pandas"}),
    "robust_plots": ({"plots", "record", "robust_tables"}, {"matplotlib", "numpy", "pandas"}),
    "leases": (set(), set()),
    "measured": ({"record", "robustness", "stats", "summary"}, {"pandas"}),
    "published": (LEAVES | {"measured", "protocols", "record", "saving", "stats", "summary", "tables"},
                  {"pandas", "yaml"}),
    "listeners": (LEAVES, {"torch", "wandb", "mlflow"}),
    "compact": (LEAVES | {"record"}, {"pyarrow"}),
    "catalogue": ({"attacks", "config", "data", "errors", "leases", "needs", "protocols", "record", "registry"}
                  | {"robustness", "weights"},
                  {"omegaconf"}),
    "executors.": (LEAVES | {"executors"}, {"ray", "submitit"}),
    "jobs": ({"api", "build", "certifiers", "config", "cost", "data", "execution", "executors", "header", "record"}
             | {"stats", "weights"}, {"torch", "omegaconf"}),
    "cost": ({"api"}, {"torch"}),
    "memory": (set(), {"torch"}),
    "training": (LEAVES | {"recipe", "memory"}, {"torch"}),
    "classifiers.": (LEAVES | {"classifiers", "recipe", "training"}, {"torch", "timm", "transformers"}),
    "checkpoints.": (LEAVES | {"checkpoints", "classifiers", "diffusion", "memory", "weights"},
                     {"torch", "numpy", "safetensors", "msgpack"}),
    "certifiers.": (LEAVES | {"api", "draws", "evidence", "memory", "stats", "stopping", "certifiers"},
                    {"torch", "numpy"}),
    "audit_job": ({"attacks", "data", "examples", "record"}, {"torch", "omegaconf"}),
    "attacks.": (LEAVES | {"api", "attacks", "draws", "evidence", "memory", "norms", "stats"}, {"torch", "numpy"}),
    "diffusion.": (LEAVES | {"training", "diffusion"}, {"torch", "numpy", "diffusers", "yaml"}),
    "data.": (LEAVES | {"data", "datasets"}, {"torch", "numpy", "scipy", "sklearn", "pyarrow", "PIL", "yaml"}),
    "conformance.": (LEAVES | {"api", "draws", "cost", "certifiers", "stats", "training", "conformance"},
                     {"torch", "numpy"}),
    "testing": (LEAVES | {"api", "conformance"}, {"pytest"}),
    "execution": ({"api", "certifiers", "draws"}, {"numpy", "torch"}),
    "build": (LEAVES | {"api", "data", "registry", "weights"}, {"torch", "omegaconf"}),
    "notebook": (
        {"api", "attacks", "build", "certifiers", "data", "noises", "norms", "progress", "robustness", "stats"}
        | {"stopping", "weights"},
        {"pandas", "torch", "omegaconf"},
    ),
    "fitting": ({"api", "build", "data", "listeners", "progress", "recipe", "weights"}, {"torch", "omegaconf"}),
    "attack_job": (
        LEAVES
        | {"api", "attacks", "audit_job", "build", "cost", "data", "examples", "norms", "progress", "record"}
        | {"robustness", "weights"},
        {"torch", "numpy", "omegaconf"},
    ),
    "header": ({"api", "attack_job", "certifiers", "config", "cost", "data", "protocols", "record", "registry"}
               | {"stats", "stopping", "weights"},
               {"torch", "omegaconf"}),
    "runner": (
        LEAVES
        | {"api", "attack_job", "audit_job", "build", "certifiers", "config", "data", "execution", "executors"}
        | {"header", "jobs", "leases", "listeners", "needs", "norms"}
        | {"progress", "record", "registry", "stats", "weights"},
        {"torch", "omegaconf"},
    ),
    "planning": (
        {"api", "build", "certifiers", "config", "cost", "data", "datasets", "evidence", "execution", "header", "jobs"}
        | {"needs", "record", "stats", "stopping"},
        {"numpy", "torch", "omegaconf"},
    ),
    "cli": (
        LEAVES
        | {"audit_job", "catalogue", "compact", "compare", "config", "fitting", "halting", "logs", "pareto"}
        | {"pareto_plot", "planning", "plots", "published", "record", "registry", "reproduce", "robust_plots"}
        | {"robust_tables"}
        | {"runner", "share_plot", "stock", "summary", "tables", "testing", "verify", "weights"},
        set(),
    ),
}  # fmt: skip
METHODS = (LEAVES | {"api", "checkpoints", "classifiers", "diffusion", "recipe", "training", "weights"},
           {"torch", "numpy", "diffusers", "lpips"})  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "drbench" else {base}
    return found


def rule(path: Path) -> tuple[set[str], set[str]]:
    parts = path.relative_to(ROOT / "drbench").with_suffix("").parts
    return MAY_IMPORT[parts[0] if len(parts) == 1 else f"{parts[0]}."]


@pytest.mark.parametrize("path", sorted((ROOT / "drbench").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_drbench_imports(path):
    ours, others = rule(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "drbench":
            assert rest.partition(".")[0] in ours, f"{path.name} must not import {name}"
        elif top in THIRD_PARTY | {"methods"}:
            assert top in others, f"{path.name} must not import {name}"
        else:
            assert top in sys.stdlib_module_names, f"{path.name} imports {name}, which is in no rule"


@pytest.mark.parametrize("path", sorted((ROOT / "methods").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_methods_imports(path):
    ours, others = METHODS
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "methods":
            assert rest.split(".")[0] == path.parent.name, f"{path} must not import another method: {name}"
        elif top == "drbench":
            assert rest.partition(".")[0] in ours, (
                f"{path} must not import {name}: a method cannot touch its certificate"
            )
        else:
            assert top in others or top in sys.stdlib_module_names, f"{path} must not import {name}"


def test_a_planted_import_is_caught(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from drbench import runner\n    import torch.nn\n    from drbench.certifiers import engine\n"
    )
    assert imports(path) == {"drbench.runner", "torch.nn", "drbench.certifiers"}


def test_unsafe_loading_is_nowhere():
    """Every torch.load is weights_only; no pickle, eval, exec, yaml.load or shell."""
    for path in [*(ROOT / "drbench").rglob("*.py"), *(ROOT / "methods").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"), (
                f"{path}: {name}"
            )
            assert keywords.get("shell") != "True", f"{path}: shell=True"
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["show", "benchmarks/digits/undefended.yaml"], ["status", "{run}"], ["verify", "{run}"],
     ["table", "{run}"], ["table", "{run}", "--out", "{out}"], ["plot", "{run}", "--out", "{out}"],
     ["table", "--cost", "{run}"], ["plot", "--cost", "{run}", "--out", "{out}"],
     ["table", "{run}", "--paper", "rcm-cifar10"], ["weights", "list"], ["data", "list"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_verbs_without_torch(words, tmp_path):
    run = tmp_path / "run"
    make_run(run / "a", [990, 900, None, 400], sigma=0.25)
    make_cascade(run / "b", [[990], [400, 900], None, [500]])
    words = [word.format(run=run, out=tmp_path / "out") for word in words]
    program = f"""
import sys
sys.argv = ["drbench", *{words!r}]
from drbench.cli import main
try:
    code = main()
except SystemExit as end:
    code = end.code
heavy = {{"torch", "diffusers", "lpips"}} & set(sys.modules)
assert code in (0, None), code
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
