"""Who may import whom, read from the source; and what must not load torch, seen in child processes."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.runs import make_cascade, make_run

ROOT = Path(__file__).parents[1]
LEAVES = {"errors"}
THIRD_PARTY = {"torch", "numpy", "scipy", "pandas", "matplotlib", "omegaconf", "yaml", "diffusers", "safetensors",
               "sklearn", "tqdm", "lpips", "torchvision", "pytest", "pyarrow", "PIL", "ray", "submitit", "wandb",
               "mlflow", "timm", "transformers", "msgpack", "jinja2", "markupsafe", "plotly", "playwright", "filelock",
               "huggingface_hub", "cv2"}  # fmt: skip

# module, or room (a package, with a dot at the end) -> what of ours, and of others, it may import anywhere in its
# source; a file of a room that differs has an entry of its own
MAY_IMPORT = {
    "__init__": (set(), set()),
    "__main__": ({"cli"}, set()),
    "errors": (set(), set()),
    "digests": (set(), set()),
    "specs": (LEAVES, set()),
    "recipe": (LEAVES, set()),
    "progress": (set(), {"tqdm"}),
    "memory": (set(), {"torch"}),
    "cores": (set(), {"torch"}),
    "draws": (set(), {"torch", "numpy"}),
    "evidence": (LEAVES, set()),
    "api": (LEAVES | {"draws", "evidence", "memory"}, {"torch"}),
    "asking": ({"api"}, {"torch"}),
    "cost": ({"api", "asking"}, {"torch"}),
    "registry": (LEAVES, set()),
    # statistics
    "norms": (LEAVES, {"numpy"}),
    "stats.": (LEAVES | {"evidence"}, {"numpy", "scipy"}),
    # what is read and written
    "files.": (LEAVES | {"progress"}, {"filelock", "huggingface_hub", "yaml"}),
    "weights": (LEAVES | {"files"}, {"yaml", "safetensors", "torch"}),
    "config.": (LEAVES | {"attacks", "norms", "recipe"}, {"omegaconf", "yaml"}),
    "data.": (LEAVES | {"digests", "files"}, {"torch", "numpy", "scipy", "pyarrow", "PIL", "yaml", "cv2"}),
    "records.": (LEAVES | {"config", "digests", "evidence", "norms", "stats"},
                 {"numpy", "omegaconf", "pyarrow", "scipy"}),
    # networks
    "training": (LEAVES | {"recipe", "memory"}, {"torch"}),
    "diffusion.": (LEAVES | {"training", "specs"}, {"torch", "numpy", "diffusers", "yaml"}),
    "classifiers.": (LEAVES | {"recipe", "specs", "training"}, {"torch", "timm", "transformers"}),
    "checkpoints.": (LEAVES | {"classifiers", "diffusion", "files", "memory", "weights"},
                     {"torch", "numpy", "safetensors", "msgpack"}),
    # the two engines, and what does their work
    "certifiers.": (LEAVES | {"api", "asking", "cores", "draws", "evidence", "memory", "stats"}, {"torch", "numpy"}),
    "attacks.": (LEAVES | {"api", "asking", "cores", "draws", "evidence", "memory", "norms", "stats"},
                 {"torch", "numpy"}),
    "executors.": (LEAVES, {"ray", "submitit"}),
    "jobs.": (LEAVES | {"api", "asking", "attacks", "certifiers", "config", "cost", "data", "diffusion", "draws"}
              | {"executors", "files", "norms", "progress", "recipe", "records", "registry", "stats"}
              | {"weights"}, {"torch", "numpy", "omegaconf", "wandb", "mlflow"}),
    "planning.": (LEAVES | {"api", "attacks", "certifiers", "config", "cost", "data", "evidence", "files", "jobs"}
                  | {"records", "stats"}, {"numpy", "torch", "omegaconf"}),
    "notebook": (LEAVES | {"api", "attacks", "certifiers", "data", "evidence", "jobs", "norms", "progress", "stats"}
                 | {"weights"}, {"pandas", "torch", "omegaconf"}),
    # what is made of records
    "tables.": (LEAVES | {"evidence", "records", "stats"}, {"numpy", "pandas", "scipy"}),
    "plots.": (LEAVES | {"records", "tables"}, {"numpy", "pandas", "matplotlib"}),
    "papers.": (LEAVES | {"config", "norms", "records", "stats", "tables"}, {"pandas", "yaml"}),
    "papers.reproduce": (LEAVES | {"config", "files", "jobs", "papers", "planning", "records", "tables"},
                         {"omegaconf"}),
    "comparisons.": (LEAVES | {"attacks", "evidence", "files", "papers", "records", "stats", "tables", "weights"},
                     {"numpy", "pandas", "yaml"}),
    "gallery.": (LEAVES | {"evidence", "plots", "records", "stats"}, {"numpy", "matplotlib"}),
    "gallery.gathering": ({"api", "attacks", "certifiers", "config", "draws", "gallery", "jobs", "norms", "records"}
                          | {"weights"}, {"numpy", "torch", "omegaconf"}),
    "report.": (LEAVES | {"comparisons", "evidence", "plots", "records", "stats", "tables", "weights"},
                {"pandas", "jinja2", "markupsafe", "plotly"}),
    # for authors and at the prompt
    "conformance.": (LEAVES | {"api", "draws", "cost", "certifiers", "stats", "training"}, {"torch", "numpy"}),
    "testing": (LEAVES | {"api", "conformance"}, {"pytest"}),
    "catalogue": (LEAVES | {"attacks", "config", "data", "jobs", "records", "registry", "stats", "weights"},
                  {"omegaconf"}),
    "stock": (LEAVES | {"checkpoints", "files"}, set()),
    "verbs": (LEAVES | {"catalogue", "comparisons", "config", "gallery", "jobs", "papers", "planning", "plots"}
              | {"records", "registry", "report", "stock", "tables", "testing", "weights"}, set()),
    "cli": (LEAVES | {"verbs"}, set()),
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
    if len(parts) == 1:
        return MAY_IMPORT[parts[0]]
    ours, others = MAY_IMPORT.get(".".join(parts), MAY_IMPORT[f"{parts[0]}."])
    return ours | {parts[0]}, others


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


def test_rooms_have_no_circles():
    below = {}
    for name, (ours, _) in MAY_IMPORT.items():
        room = name.partition(".")[0]
        below.setdefault(room, set()).update(ours - {room})
    TopologicalSorter(below).prepare()


def test_a_planted_import_is_caught(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from drbench import registry\n    import torch.nn\n    from drbench.certifiers import engine\n"
    )
    assert imports(path) == {"drbench.registry", "torch.nn", "drbench.certifiers"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "drbench").rglob("__init__.py")), ids=lambda p: str(p.parent.relative_to(ROOT))
)
def test_packages_name_their_modules(path):
    """The docstring of a package is an index: "name, name   what is there", or the words on an indented next line."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    entries = re.findall(r"^(\w+(?:, \w+)*)(?: {2,}\S|\n +\S)", text, re.M)
    named = {name for names in entries for name in names.split(", ")}
    there = {p.stem for p in path.parent.glob("*.py")} | {p.parent.name for p in path.parent.glob("*/__init__.py")}
    there = {name for name in there if not name.startswith("_")}
    missing, gone = sorted(there - named), sorted(named - there)
    place = f"the index in the docstring of {path.relative_to(ROOT)}"
    assert not missing, f"{', '.join(missing)}: add a line each to {place}, beside related modules"
    assert not gone, f"{', '.join(gone)}: no such module; take it out of {place}"


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
