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
               "mlflow", "timm", "transformers", "msgpack", "jinja2", "markupsafe", "plotly", "playwright", "filelock",
               "huggingface_hub", "cv2"}  # fmt: skip

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
    "config_keys": ({"recipe"}, set()),
    "config_checks": (LEAVES | {"attacks", "config_keys", "norms"}, {"omegaconf"}),
    "config": (LEAVES | {"config_checks", "config_keys", "norms", "protocols"}, {"omegaconf", "yaml"}),
    "places": (set(), {"yaml"}),
    "download": (LEAVES | {"progress"}, set()),
    "fetching": (LEAVES | {"download"}, {"filelock", "huggingface_hub"}),
    "foreign": (LEAVES | {"checkpoints", "fetching", "places"}, set()),
    "weights": (LEAVES | {"fetching", "foreign", "places"}, {"yaml", "safetensors", "torch"}),
    "datasets": (LEAVES | {"places"}, set()),
    "specs": (LEAVES, set()),
    "data_files": (LEAVES | {"datasets", "fetching", "places"}, set()),
    "stock": (LEAVES | {"data_files", "datasets", "fetching", "foreign"}, set()),
    "effort": ({"attacks", "config", "data", "datasets", "places"}, {"omegaconf"}),
    "reproduce": (LEAVES
                  | {"config", "effort", "needs", "places", "published", "record", "robust_tables", "runner", "summary"}
                  | {"tables"}, {"omegaconf"}),
    "needs": (LEAVES | {"data_files", "foreign", "weights"}, {"omegaconf"}),
    "quantities": (set(), {"numpy", "scipy"}),
    "summary": (LEAVES | {"evidence", "noises", "quantities", "record", "stats"}, {"numpy", "pandas"}),
    "saving": (LEAVES, {"pandas"}),
    "compare": (LEAVES | {"frames", "record", "saving", "stats", "summary"}, {"pandas"}),
    "thinning": (LEAVES | {"evidence", "record"}, {"numpy"}),
    "per_image": (LEAVES | {"evidence", "record", "stats", "summary"}, {"pandas"}),
    "sides": ({"attacks", "per_image", "record", "stats", "summary"}, set()),
    "paired_stats": ({"stats"}, {"numpy"}),
    "paired": (LEAVES | {"paired_stats", "per_image", "record", "sides", "stats", "summary", "thinning"},
               {"numpy", "pandas"}),
    "claims": (LEAVES | {"paired", "per_image", "record", "sides", "weights"}, {"pandas", "yaml"}),
    "claim_tables": ({"claims", "frames", "saving", "tables"}, {"pandas"}),
    "lineage": (LEAVES | {"places", "weights"}, {"yaml"}),
    "cost_factors": ({"paired", "published", "record", "sides", "thinning", "weights"}, set()),
    "head_to_head": (LEAVES | {"cost_factors", "lineage", "paired_stats", "per_image", "record", "sides", "stats"}
                     | {"summary", "thinning"}, {"numpy", "pandas"}),
    "head_to_head_tables": ({"frames", "saving", "tables"}, {"pandas"}),
    "halting": ({"record", "stats", "summary"}, {"pandas"}),
    "logs": (LEAVES | {"evidence", "record", "stats"}, {"scipy"}),
    "beside": ({"frames", "summary"}, {"pandas"}),
    "tables": (LEAVES | {"beside", "frames", "saving", "summary"}, {"pandas"}),
    "curves": (LEAVES | {"record", "summary"}, {"numpy", "pandas"}),
    "plots": (LEAVES | {"curves", "frames", "record", "summary"}, {"pandas", "matplotlib"}),
    "pareto": (LEAVES | {"frames", "record", "saving", "summary"}, {"pandas"}),
    "pareto_plot": (LEAVES | {"curves", "frames", "pareto", "plots", "record", "summary"}, {"pandas", "matplotlib"}),
    "share_plot": (LEAVES | {"curves", "frames", "plots", "quantities", "record", "summary"},
                   {"numpy", "pandas", "matplotlib"}),
    "robust_tables": (LEAVES | {"frames", "record", "robustness", "saving", "summary", "tables"}, {"pandas"}),
    "robust_plots": ({"curves", "plots", "record", "robust_tables"}, {"matplotlib", "numpy", "pandas"}),
    "report.": (
        LEAVES
        | {"claim_tables", "claims", "curves", "evidence", "frames", "halting", "head_to_head", "pareto"}
        | {"record", "report", "robust_tables", "stats", "summary", "tables"}
        | {"verify", "weights"},
        {"pandas", "jinja2", "markupsafe", "plotly"},
    ),
    "frames": (set(), {"pandas"}),
    "gallery": (LEAVES | {"record"}, {"numpy"}),
    "gallery_words": (LEAVES | {"evidence", "gallery", "record", "stats"}, set()),
    "gallery_draw": ({"gallery", "plots"}, {"numpy", "matplotlib"}),
    "gallery_gather": ({"api", "attacks", "build", "certifiers", "config", "draws", "examples", "gallery"}
                       | {"gallery_words", "jobs", "norms", "record", "weights"}, {"numpy", "torch", "omegaconf"}),
    "leases": (set(), set()),
    "measured": ({"halting", "norms", "record", "robustness", "stats", "summary"}, {"pandas"}),
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
    "asking": ({"api"}, {"torch"}),
    "cost": ({"api", "asking"}, {"torch"}),
    "memory": (set(), {"torch"}),
    "cores": (set(), {"torch"}),
    "training": (LEAVES | {"recipe", "memory"}, {"torch"}),
    "classifiers.": (LEAVES | {"classifiers", "recipe", "specs", "training"}, {"torch", "timm", "transformers"}),
    "checkpoints.": (LEAVES | {"checkpoints", "classifiers", "diffusion", "memory", "weights"},
                     {"torch", "numpy", "safetensors", "msgpack"}),
    "certifiers.": (LEAVES | {"api", "asking", "certifiers", "cores", "draws", "evidence", "memory", "stats"}
                    | {"stopping"},
                    {"torch", "numpy"}),
    "audit_job": ({"attacks", "data", "examples", "record"}, {"torch", "omegaconf"}),
    "attacks.": (LEAVES | {"api", "asking", "attacks", "cores", "draws", "evidence", "memory", "norms", "stats"},
                 {"torch", "numpy"}),
    "diffusion.": (LEAVES | {"training", "diffusion", "specs"}, {"torch", "numpy", "diffusers", "yaml"}),
    "data.": (LEAVES | {"data", "datasets", "places"},
              {"torch", "numpy", "scipy", "pyarrow", "PIL", "yaml", "cv2"}),
    "conformance.": (LEAVES | {"api", "draws", "cost", "certifiers", "stats", "training", "conformance"},
                     {"torch", "numpy"}),
    "testing": (LEAVES | {"api", "conformance"}, {"pytest"}),
    "execution": ({"api", "certifiers", "draws"}, {"numpy", "torch"}),
    "restricted": ({"api", "asking"}, set()),
    "stated": (LEAVES | {"diffusion", "weights"}, set()),
    "build": (LEAVES | {"api", "data", "registry", "restricted", "stated", "weights"}, {"torch", "omegaconf"}),
    "notebook": (
        {"api", "attacks", "build", "certifiers", "data", "noises", "norms", "progress", "robustness", "stats"}
        | {"stopping", "weights"},
        {"pandas", "torch", "omegaconf"},
    ),
    "fitting": ({"api", "build", "data", "listeners", "needs", "progress", "recipe", "weights"},
                {"torch", "omegaconf"}),
    "attack_job": (
        LEAVES
        | {"api", "attacks", "audit_job", "build", "cost", "data", "examples", "norms", "progress", "record"}
        | {"robustness", "weights"},
        {"torch", "numpy", "omegaconf"},
    ),
    "header": ({"api", "attack_job", "certifiers", "config", "config_keys", "cost", "data", "protocols", "record"}
               | {"registry", "stats", "stopping", "weights"},
               {"torch", "omegaconf"}),
    "certify_job": (
        LEAVES
        | {"api", "certifiers", "config", "data", "execution", "executors", "header", "jobs", "leases", "listeners"}
        | {"progress", "record", "stats"},
        {"omegaconf"},
    ),
    "runner": (
        LEAVES
        | {"api", "attack_job", "audit_job", "build", "certify_job", "config", "executors"}
        | {"header", "jobs", "leases", "needs", "norms"}
        | {"progress", "record", "registry", "stats", "weights"},
        {"torch", "omegaconf"},
    ),
    "first_calls": ({"api"}, {"torch"}),
    "attack_planning": ({"api", "attack_job", "attacks", "audit_job", "cost", "data"}, {"numpy", "omegaconf"}),
    "planning": (
        {"api", "attack_planning", "build", "certifiers", "config", "cost", "data", "datasets", "evidence"}
        | {"effort", "execution", "first_calls", "header", "jobs"}
        | {"needs", "record", "stats", "stopping"},
        {"numpy", "torch", "omegaconf"},
    ),
    "cli": (LEAVES | {"verbs"}, set()),
    "verbs": (
        LEAVES
        | {"audit_job", "catalogue", "claim_tables", "claims", "compact", "compare", "config", "fitting"}
        | {"gallery_draw", "gallery_gather", "halting", "head_to_head", "head_to_head_tables", "logs"}
        | {"pareto", "pareto_plot", "planning", "plots", "published", "record", "registry", "report", "reproduce"}
        | {"robust_plots", "robust_tables", "runner", "share_plot", "stock", "summary", "tables", "testing", "verify"}
        | {"weights"},
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


RUN_CODE = {"eval", "exec", "compile", "os.system", "os.popen", "torch.jit.load", "torch.hub.load", "runpy.run_path",
            "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load",
            "cloudpickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}  # fmt: skip
TRUSTING = {"shell", "allow_pickle", "trust_remote_code"}  # keywords that must not be true
RESTRICTED = ("drbench/checkpoints/unpickling.py", "drbench/data/pickled.py")  # each knows a fixed list of names


def unsafe(source: str, path: str = "") -> list[str]:
    """What in a source could run code that a file or a config brings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call) else ""
        if isinstance(node, ast.Attribute) and text in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
            found += [text] if text != "pickle.Unpickler" or path not in RESTRICTED else []
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "torch", "yaml", "os"):
            names = {alias.name for alias in node.names}
            found += sorted(names & {"load", "loads", "Unpickler", "unsafe_load", "system", "popen"})
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            found += [name] if name in RUN_CODE else []
            found += [
                f"{key}={keywords[key]}" for key in sorted(TRUSTING & keywords.keys()) if keywords[key] != "False"
            ]
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append(text)
    return found


def test_unsafe_loading_is_nowhere():
    """Every torch.load is weights_only; no pickle but the restricted one, no eval, exec, yaml.load or shell."""
    paths = [path for part in ("drbench", "methods", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    assert len(paths) > 100
    for path in paths:
        name = str(path.relative_to(ROOT))
        assert unsafe(path.read_text(), name) == [], name


@pytest.mark.parametrize(
    "line",
    ["torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)",
     "pickle.loads(data)", "read = pickle.load", "class A(pickle.Unpickler): pass", "from pickle import Unpickler",
     "from torch import load", "eval('1')", "exec(text)", "yaml.load(text)", "subprocess.run(words, shell=True)",
     "subprocess.run(words, shell=given)", "numpy.load(path, allow_pickle=True)", "os.system('ls')",
     "models.AutoModel.from_pretrained(x, trust_remote_code=True)"],
)  # fmt: skip
def test_planted_unsafe_loading_is_caught(line):
    assert unsafe(line)
    assert unsafe("torch.load(path, weights_only=True)\nnetwork.eval()\nyaml.safe_load(text)") == []


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["show", "benchmarks/digits/undefended.yaml"], ["status", "{run}"], ["verify", "{run}"],
     ["table", "{run}"], ["table", "{run}", "--out", "{out}"], ["plot", "{run}", "--out", "{out}"],
     ["table", "--cost", "{run}"], ["plot", "--cost", "{run}", "--out", "{out}"],
     ["table", "{run}", "--paper", "rcm-cifar10"], ["table", "{run}", "--head-to-head", "--out", "{out}"],
     ["claims", "{run}"], ["claims", "{run}", "--out", "{out}"], ["report", "{run}", "--out", "{out}.html"],
     ["weights", "list"], ["data", "list"]],
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
