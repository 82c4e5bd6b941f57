"""One run by many: worker processes, shards, Ray, jobs, and all of them at once; under real kills and faults."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from drbench import config, registry
from drbench.cli import main
from drbench.draws import block_key
from drbench.errors import DrbenchError
from drbench.jobs import runner
from drbench.records import record, verify

ROOT = Path(__file__).parents[1]
UNDEFENDED = ROOT / "benchmarks" / "digits" / "undefended.yaml"
SMALL = ["certify.sigma=0.25", "certify.n=300", "certify.n0=50", "data.subset=first40", "run.batch_rows=256"]
PROCESSES = ["run.executor=processes", "run.workers=2"]


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    os.chdir(ROOT)
    return run(tmp_path_factory.mktemp("calm"))


def run(out, *overrides, **options):
    (folder,) = runner.run(config.load(UNDEFENDED, [*SMALL, *overrides]), out, options=runner.Options(**options))
    return record.read(folder)


def evidence(found):
    return {image_id: row.evidence for image_id, row in found.rows.items()}


def lines(found):
    """How often each image was done."""
    paths = found.folder.glob("rows-*.jsonl")
    return Counter(record.decode(line)["id"] for path in paths for line in path.read_bytes().splitlines(keepends=True))


def check(found, calm):
    assert found.complete and found.header["status"] == "complete" and verify.problems(found) == []
    assert evidence(found) == evidence(calm)
    assert not list(found.folder.glob("claims*")) and not list(found.folder.glob("run.lock"))


def test_processes_and_shards_change_nothing(calm, tmp_path):
    found = run(tmp_path / "processes", *PROCESSES)
    check(found, calm)
    environment = found.header["sessions"][0]["environment"]
    assert (environment["executor"], environment["workers"]) == ("processes", 2)
    assert found.header["cost"]["network_evaluations"]["classifier"] >= 40 * 350
    for shard in ((2, 3), (1, 3)):
        part = run(tmp_path / "shards", shard=shard)
        assert part.header["status"] == "partial"
    assert sorted(part.rows, key=part.wanted.index) == [each for i, each in enumerate(part.wanted) if i % 3 < 2]
    whole = run(tmp_path / "shards", *PROCESSES)  # does what is left
    check(whole, calm)
    assert set(lines(whole).values()) == {1} and len(whole.header["sessions"]) == 3


@pytest.mark.slow
def test_a_cascade_and_an_adaptive_run_in_processes(tmp_path):
    spec = "defense: {name: undefended, checkpoint: [digits/classifier]}\ncertify: "
    for name, certify in (
        ("cascade", "{kind: cascade, sigmas: [0.25, 0.5, 1.0]}"), ("hybrid", "{mode: hybrid, sigma: 0.25}")
    ):  # fmt: skip
        file = tmp_path / f"{name}.yaml"
        file.write_text(spec + certify)
        overrides = ["certify.n=2000", "data.subset=first30", "run.batch_rows=256"]
        runs = [runner.run(config.load(file, [*overrides, *more]), tmp_path / f"{name}{len(more)}")[0]
                for more in ([], PROCESSES)]  # fmt: skip
        calm, found = map(record.read, runs)
        check(found, calm)


@pytest.mark.slow
def test_ray_and_jobs_change_nothing(calm, tmp_path):
    check(run(tmp_path / "jobs", "run.executor=slurm", "run.workers=2", "run.slurm={cluster: local}"), calm)
    check(run(tmp_path / "ray", "run.executor=ray", "run.workers=2"), calm)


@pytest.mark.slow
def test_a_killed_ray_worker_is_replaced(tmp_path):
    from drbench.executors import make
    from drbench.executors.units import Units
    from tests.jobs import Squares

    executor = make("ray", 2, 5.0, {})
    try:
        for fates in ({}, {4: "die once", 9: "raise", 12: "die"}, {3: "hang"}):
            job = Squares(tmp_path, fates, 0.01)
            found = {answer.unit: answer for answer in executor.run(job, Units(range(16), 4))}
            bad = {unit: answer.error for unit, answer in found.items() if answer.error}
            assert sorted(found) == list(range(16))
            expected = {9: "ValueError: unit 9 is bad really", 12: "worker died", 3: "no answer in 5 s"}
            assert bad == {unit: expected[unit] for unit, fate in fates.items() if fate != "die once"}
    finally:
        executor.close()


def test_slurm_asks_for_a_number_of_jobs(tmp_path):
    with pytest.raises(DrbenchError, match=r"expected run.workers, the number of jobs"):
        run(tmp_path, "run.executor=slurm")


# ---- kills --------------------------------------------------------------------------------------------------------

LONG = ["certify.sigma=0.25", "certify.n=20000", "data.subset=first60", "run.batch_rows=512"]
KILLS = int(os.environ.get("DRBENCH_TEST_KILLS", "12"))


def command(out, *overrides):
    return [sys.executable, "-m", "drbench", "run", str(UNDEFENDED), *LONG, *PROCESSES, *overrides, "--out", str(out)]


def children(pid):
    """Worker processes of a process: those that Python spawned for it, not its resource tracker."""
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "spawn_main" in line]


@pytest.mark.slow
def test_kills_of_workers_and_parents_lose_nothing(tmp_path):
    rng, kills, acknowledged, ends = random.Random(0), 0, set(), 0
    process = None
    while kills < KILLS:
        if process is None or process.poll() is not None:
            process = subprocess.Popen([*command(tmp_path), "--retry-errors"], stdout=subprocess.DEVNULL)
            begun = time.monotonic()
        time.sleep(rng.uniform(0, 2.5))
        workers = children(process.pid)
        victim = rng.choice([process.pid, *workers]) if workers and time.monotonic() - begun > 3 else None
        if victim:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            kills += 1
            if victim == process.pid:
                process.wait()
        for header in list(tmp_path.rglob("run.json")):  # a list: below, a folder is renamed
            now = {image_id for image_id, row in record.read(header.parent).rows.items() if not row.error}
            assert acknowledged <= now, "a recorded image was lost"
            acknowledged = now
            if len(now) == 60:  # done too soon: begin another
                ends += 1
                process.wait()
                header.parent.rename(tmp_path.parent / f"done-{tmp_path.name}-{ends}")
                acknowledged = set()
    process.kill()
    process.wait()
    done = subprocess.run([*command(tmp_path), "--retry-errors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calm = runner.run(config.load(UNDEFENDED, LONG), tmp_path / "calm")
    found = record.read(Path(done.stdout.strip().splitlines()[-1]))
    assert evidence(found) == evidence(record.read(calm[0])) and verify.problems(found) == []
    assert record.evidence_sha256(found) == record.evidence_sha256(record.read(calm[0]))


@pytest.mark.slow
def test_two_runs_of_one_command_share_the_work(tmp_path):
    words = command(tmp_path, "run.executor=inline", "run.threads=1")
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=300)[0].strip().splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(folders) == 1
    found = record.read(folders.pop())
    assert found.complete and verify.problems(found) == [] and len(found.header["sessions"]) == 2
    assert found.header["status"] == "complete" and len(list(found.folder.glob("rows*"))) == 2
    assert sum(lines(found).values()) <= 1.1 * 60


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_too(tmp_path):
    process = subprocess.Popen(command(tmp_path, "certify.n=100000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    while not any(file.stat().st_size for file in tmp_path.rglob("rows*")):  # the file is there before the workers are
        assert process.poll() is None
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) == 2
    assert main(["status", str(tmp_path)]) == 0
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    (folder,) = record.find([tmp_path])
    found = record.read(folder)
    assert found.rows and found.header["status"] == "partial" and not list(folder.glob("claims*"))


# ---- faults -------------------------------------------------------------------------------------------------------


def test_every_truncation_of_the_last_two_lines(calm, tmp_path):
    """The reader never raises and never invents a record."""
    (path,) = calm.folder.glob("rows*")
    content = path.read_bytes()
    *_, before, _last = content.splitlines(keepends=True)
    copy = tmp_path / path.name
    (tmp_path / "run.json").write_bytes((calm.folder / "run.json").read_bytes())
    for length in range(len(content) - len(before) - len(_last), len(content)):
        copy.write_bytes(content[:length])
        found = record.read(tmp_path)
        whole = content[:length].count(b"\n")
        assert len(found.rows) == whole and all(calm.rows[each] == row for each, row in found.rows.items())
        torn = not content[:length].endswith(b"\n")
        assert len(found.problems) == torn and all("torn last line" in problem for problem in found.problems)
        assert record.Tail(tmp_path).ids() == set(found.rows)


@pytest.mark.parametrize("error", ["No space left on device", "Input/output error", "Disk quota exceeded"])
def test_a_failing_disk_keeps_what_was_acknowledged(calm, tmp_path, monkeypatch, capsys, error):
    write, written = os.write, []

    def fails(file, data):
        written.append(data)
        if len(written) > 5:
            raise OSError(5, error)
        return write(file, data)

    monkeypatch.setattr("drbench.records.record.os.write", fails)
    assert main(["run", str(UNDEFENDED), *SMALL, "--out", str(tmp_path)]) == 2
    assert error in capsys.readouterr().err
    monkeypatch.undo()
    (folder,) = record.find([tmp_path])
    found = record.read(folder)
    assert len(found.rows) == 5 and found.header["status"] == "partial" and verify.problems(found) == []
    monkeypatch.chdir(ROOT)
    check(run(tmp_path), calm)


def test_images_that_fail_are_recorded_and_can_be_done_again(calm, tmp_path, monkeypatch, capsys):
    defense = registry.find("undefended")
    logits, bad = defense.logits, block_key(0, calm.wanted[3], 0.25, "estimate", 0)

    def fails(self, z, sigma, draws):
        if any(span.key == bad for span in draws.spans):
            raise RuntimeError("no luck")
        return logits(self, z, sigma, draws)

    monkeypatch.setattr(defense, "logits", fails)
    found = run(tmp_path)
    (failed,) = (row for row in found.rows.values() if row.error)
    assert failed.id == calm.wanted[3] and "RuntimeError: no luck" in failed.error and found.complete
    assert main(["status", str(tmp_path)]) == 0 and "1 errors" in capsys.readouterr().out
    with pytest.raises(DrbenchError, match="more than --max-errors 0"):
        run(tmp_path / "strict", max_errors=0)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert evidence(run(tmp_path)) != evidence(calm)  # what is recorded is not done again unless
    check(run(tmp_path, retry_errors=True), calm)
    check(run(tmp_path / "strict", retry_errors=True), calm)
