"""Every registered defense conforms; and the walk-through of methods/README.md works when typed in literally."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from drbench import registry
from drbench.errors import DrbenchError
from drbench.testing import Skip, checks_for, parametrize_with_checks

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "methods" / "README.md"


@parametrize_with_checks([registry.find(name) for name in sorted(registry.DEFENSES)])
def test_conformance(check):
    check()


def test_every_method_folder_is_registered():
    folders = {path.parent.name for path in (ROOT / "methods").glob("*/defense.py")}
    assert {target.split(".")[1] for target in registry.DEFENSES.values()} == folders


@pytest.mark.parametrize(
    "options", [{"sampler": "pf_ode", "steps": 3}, {"sampler": "densepure", "steps": 2, "votes": 2}], ids=str
)
def test_options_of_denoised_conform(options):
    """The suite sees `tiny`, one option: the others by their own miniatures, at one size. They are trained alike."""
    from methods.denoised.defense import Denoised

    class Variant(Denoised):
        @classmethod
        def tiny(cls, input_shape, num_classes):
            return cls(input_shape, num_classes, channels=(8, 16), width=4, **options)

    passed = 0
    for name, run in checks_for(Variant):
        if name.endswith("1x8x8") and not name.startswith("trainable"):
            with contextlib.suppress(Skip):
                run()
                passed += 1
    assert passed > 12


def test_options_of_denoised_are_checked():
    from methods.denoised.defense import Denoised

    for options, message in (({"sampler": "heun"}, "unknown sampler 'heun'"), ({"steps": 0}, "steps >= 1")):
        with pytest.raises(DrbenchError, match=message):
            Denoised(**options)


def blocks() -> dict[str, str]:
    """File name (or "sh") -> the code block of the guide that follows it."""
    found = re.findall(r"(?:`([\w.]+)`:\n\n)?```(\w+)\n(.*?)```", GUIDE.read_text(), re.S)
    return {name or language: text for name, language, text in found}


def test_guide_is_short():
    code = [line for line in blocks()["noisy_mlp.py"].splitlines() if line.strip()]
    assert len(code) <= 32


@pytest.fixture
def elsewhere(tmp_path):
    """The guide's files in a folder of their own, and an environment in which its commands find drbench."""
    for name in ("noisy_mlp.py", "pyproject.toml", "noisy_mlp.yaml"):
        (tmp_path / name).write_text(blocks()[name])
    site = tmp_path / "site"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(site), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip

    def run(command):
        # Installed beside the test's environment, not into it, and without any download.
        command = command.replace("pip install", f"pip install --no-deps --no-build-isolation --target {site}")
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    return tmp_path, run


@pytest.mark.slow
def test_guide_works_literally(elsewhere):
    folder, run = elsewhere
    commands = blocks()["sh"].strip().splitlines()
    assert [command.split()[1] for command in commands] == ["install", "list", "check", "train", "run", "table", "plot"]
    outputs = {command.split()[1]: run(command) for command in commands}
    assert "acme/noisy_mlp" in outputs["list"]
    assert outputs["check"].strip().endswith("acme/noisy_mlp: conforms")
    table = pd.read_csv(folder / "certified.csv")
    assert set(table.defense) == {"acme/noisy_mlp"} and set(table.sigma) == {0.25, 0.5}
    # it must have learned: a tenth of the images is chance, and 50 images leave 5 sigma = 0.2
    assert table[(table.sigma == 0.25) & (table.radius == 0)].certified_accuracy.item() > 0.8
    assert (folder / "certified.png").stat().st_size > 10_000


def test_entry_points_of_other_packages(tmp_path, monkeypatch):
    """A broken third-party package is listed and named in its error, and does not break the others."""
    info = tmp_path / "acme-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 0.1\n")
    targets = {"fine": "noisy_mlp:NoisyMLP", "broken": "nowhere:Nothing", "function": "noisy_mlp:fit_classifier"}
    lines = [f"{name} = {target}\n" for name, target in targets.items()]
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{''.join(lines)}")
    (tmp_path / "noisy_mlp.py").write_text(blocks()["noisy_mlp.py"])
    monkeypatch.syspath_prepend(tmp_path)
    from drbench import catalogue

    listed = catalogue.defenses()
    assert re.search(r"acme/fine +A two-layer network", listed) and "acme/broken" in listed and "undefended" in listed
    assert registry.find("acme/fine").__name__ == "NoisyMLP"
    with pytest.raises(DrbenchError, match=r"acme/broken.*nowhere:Nothing.*cannot be imported"):
        registry.find("acme/broken")
    with pytest.raises(DrbenchError, match=r"acme/function.*which is a function.*expected a class derived from"):
        registry.find("acme/function")
    with pytest.raises(DrbenchError, match="did you mean 'acme/fine'"):
        registry.find("acme/fin")
