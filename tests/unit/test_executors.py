"""Executors: every unit is answered once, whatever happens to its worker; the queue; claims of shared folders."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from drbench.errors import DrbenchError
from drbench.executors import make
from drbench.executors.units import TRIES, Units
from drbench.records import leases
from tests.jobs import Squares

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["inline", "processes"])
def executor(request):
    made = make(request.param, 2, None, {})
    yield made
    made.close()


@pytest.fixture
def processes():
    made = make("processes", 2, None, {})
    yield made
    made.close()


def answers(executor, job, count, chunk=3):
    found = list(executor.run(job, Units(range(count), chunk)))
    assert sorted(answer.unit for answer in found) == list(range(count)), "each unit is answered once"
    assert all((answer.row == answer.unit**2) != bool(answer.error) for answer in found)
    return {answer.unit: answer.error for answer in found if answer.error}


def pids(folder):
    return {line.split()[1] for line in (folder / "done").read_text().splitlines()}


def test_every_unit_once(executor, tmp_path):
    assert answers(executor, Squares(tmp_path), 20) == {}
    assert answers(executor, Squares(tmp_path), 0) == {}
    assert answers(executor, Squares(tmp_path, seconds=0.001), 7, chunk=100) == {}
    assert len(pids(tmp_path)) <= executor.workers and (str(os.getpid()) in pids(tmp_path)) == (executor.workers == 1)


def test_an_exception_costs_one_unit(executor, tmp_path):
    errors = answers(executor, Squares(tmp_path, {5: "raise", 11: "raise"}), 16)
    assert errors == {5: "ValueError: unit 5 is bad really", 11: "ValueError: unit 11 is bad really"}


def test_a_mistake_ends_the_run(executor, tmp_path):
    with pytest.raises(DrbenchError, match="unit 4: say something else"):
        answers(executor, Squares(tmp_path, {4: "mistake"}, 0.001), 16)
    with pytest.raises(DrbenchError, match="cannot be opened"):
        answers(executor, Squares(tmp_path, broken=True), 16)
    assert answers(executor, Squares(tmp_path), 16) == {}  # and the executor is as good as before


def test_workers_keep_what_they_have(processes, tmp_path):
    for _ in range(3):
        answers(processes, Squares(tmp_path, seconds=0.01), 8, chunk=1)
    opened = [line.split() for line in (tmp_path / "done").read_text().splitlines()]
    assert len({pid for _, pid, _ in opened}) == 2 and {count for _, _, count in opened} == {"1", "2", "3"}


def test_a_dead_worker_is_replaced(processes, tmp_path):
    assert answers(processes, Squares(tmp_path, {4: "die once", 9: "die once"}, 0.001), 20) == {}
    assert (tmp_path / "death-4").read_text() == "x"


def test_a_poisoned_unit_is_given_up(processes, tmp_path):
    assert answers(processes, Squares(tmp_path, {7: "die"}, 0.001), 20) == {7: "worker died of signal 9"}
    assert (tmp_path / "death-7").read_text() == "x" * TRIES


def test_a_hung_worker_is_replaced(tmp_path):
    executor = make("processes", 2, 1.0, {})
    try:
        assert answers(executor, Squares(tmp_path, {3: "hang"}), 8) == {3: "no answer in 1 s"}
    finally:
        executor.close()


def test_an_idle_worker_that_died_is_replaced(processes, tmp_path):
    answers(processes, Squares(tmp_path), 4)
    for worker in processes._crew:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
    assert answers(processes, Squares(tmp_path), 4) == {}


def test_answers_of_an_interrupted_job_do_not_reach_the_next(processes, tmp_path):
    running = processes.run(Squares(tmp_path, seconds=0.02), Units(range(1000, 1050), 5))
    assert next(running).unit >= 1000
    running.close()
    assert answers(processes, Squares(tmp_path), 20) == {}


def test_workers_end_with_their_parent(tmp_path):
    program = f"""
from pathlib import Path
from drbench.executors import make
from drbench.executors.units import Units
from tests.jobs import Squares
if __name__ == "__main__":
    job = Squares(Path({str(tmp_path)!r}), seconds=0.05)
    for answer in make("processes", 2, None, {{}}).run(job, Units(range(10**6), 1)):
        pass
"""
    (tmp_path / "parent.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=environment)
    while not (tmp_path / "done").exists() or len(pids(tmp_path)) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(_alive, pids(tmp_path))):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.02)


def _alive(pid):
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- the queue ----------------------------------------------------------------------------------------------------


def test_the_queue():
    units = Units(range(7), 3)
    assert units.take() == [0, 1, 2] and not units.finished
    assert units.raised([0, 1]) == [] and units.raised([2]) == [2]
    assert list(units.chunks()) == [[0]] and list(units.chunks()) == [[1]]  # suspects come alone
    assert list(units.chunks()) == [[3, 4, 5], [6]] and units.finished and units.take() == []
    for _ in range(TRIES - 1):
        assert units.died([5]) == [] and units.suspect() == 5
    assert units.died([5]) == [5] and units.finished


def test_the_queue_leaves_out_what_others_do():
    others, done = {0, 1, 4}, set()
    claim = lambda waiting, count: ([unit for unit in waiting if unit not in others | done][:count], set(done))  # noqa: E731
    units = Units(range(6), 2, claim)
    assert units.take() == [2, 3] and units.take() == [5] and units.take() == []
    assert not units.finished  # 0, 1 and 4 may come back
    done |= {0, 1}
    assert units.take() == [] and not units.finished
    others.clear()  # the other process died
    assert units.take() == [4] and units.finished


# ---- claims -------------------------------------------------------------------------------------------------------


def test_claims_share_out(tmp_path):
    with leases.Claims(tmp_path) as a, leases.Claims(tmp_path) as b:
        assert a.take(range(10), 3) == [0, 1, 2] and b.take(range(10), 3) == [3, 4, 5]
        assert len(leases.living(tmp_path)) == 2
        assert a.take(range(6, 10), 99) == [6, 7, 8, 9]
        assert b.take(["x", 7], 2) == ["x"]
    assert leases.living(tmp_path) == {} and not list(tmp_path.iterdir())


def test_claims_of_many_threads_are_disjoint(tmp_path):
    """Both write before they read: of two that claim the same, one at least sees it."""
    taken = []

    def work():
        with leases.Claims(tmp_path) as claims:
            while mine := claims.take([i for i in range(200) if i not in taken], 7):
                taken.extend(i for i in mine if i not in taken)  # who has just finished has withdrawn its claims

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(200))


def test_claims_of_the_dead_count_for_nothing(tmp_path, monkeypatch):
    program = "import sys, os\nfrom pathlib import Path\nfrom drbench.records.leases import Claims\n" \
              "Claims(Path(sys.argv[1])).__enter__().take([1, 2], 2)\nos._exit(1)"  # fmt: skip
    subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 1 and leases.living(tmp_path) == {}
    monkeypatch.setattr(leases, "_host", lambda: "another")  # seen from another machine, it may be alive
    assert [*leases.living(tmp_path).values()] == [{1, 2}]
    with leases.Claims(tmp_path) as ours:
        assert ours.take([1, 2, 3], 3) == [3]
        (theirs,) = (path for path in tmp_path.iterdir() if path != ours.path)
        now = ours.path.stat().st_mtime
        os.utime(theirs, (now - leases.LEASE - 1,) * 2)  # until it has been silent for long
        assert ours.take([1, 2], 3) == [1, 2]
        leases.sweep(tmp_path)
        assert [*tmp_path.iterdir()] == [ours.path]


def test_damaged_claims_claim_nothing(tmp_path):
    with leases.Claims(tmp_path) as claims:
        (tmp_path / "claims-1-1.jsonl").write_text("")
        (tmp_path / "claims-2-2.jsonl").write_text("{\n[1]\n")
        (tmp_path / "claims-3-3.jsonl").write_text('{"host": "x", "pid": 1}\n[4]\n[5')
        assert claims.take([1, 4, 5], 3) == [1, 5]
