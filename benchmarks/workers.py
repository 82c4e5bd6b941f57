"""`make bench`: what worker processes gain, what handing out work costs, how a large ledger is read.

throughput   one single-threaded process against two, on the UNet row, start-up apart
overhead     seconds an executor spends per unit that costs nothing
ledger       50,000 images of 200 writers, half of them done: seconds and memory until the rest is known
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from drbench import config, executors, weights
from drbench.executors import Answer
from drbench.executors.units import Units
from drbench.jobs.worker import Certification
from drbench.records import record

CONFIG = weights.home() / "benchmarks" / "digits" / "denoised-one_shot.yaml"
IMAGES, N, BATCH, ROUNDS = 40, 2000, 512, 3
UNITS = 2000
WRITERS, LEDGER = 200, 50_000


def seconds_of(executor: executors.Executor, job: executors.Job, units: int, chunk: int) -> float:
    """Time of a job once its workers are ready."""
    answers = executor.run(job, Units(range(units), chunk))
    start = time.perf_counter()
    for _ in answers:
        pass
    return time.perf_counter() - start


def throughput() -> None:
    overrides = ["certify.sigma=0.5", f"certify.n={N}", f"data.subset=first{IMAGES}", "run.threads=2"]
    job = Certification(OmegaConf.to_container(config.load(CONFIG, overrides)[0]), BATCH, IMAGES)
    one = OmegaConf.to_container(config.load(CONFIG, [*overrides, "run.threads=1"])[0])
    single, crew = executors.make("inline", 1, None, {}), executors.make("processes", 2, None, {})
    try:
        ratios = []
        for _ in range(ROUNDS):
            alone = seconds_of(single, Certification(one, BATCH, IMAGES), IMAGES, 4)
            ratios.append(alone / seconds_of(crew, job, IMAGES, 4))
    finally:
        crew.close()
    rows = IMAGES * (N + 100) / alone
    print(
        f"UNet row, one thread: {rows:,.0f} rows/s; two processes: x {sorted(ratios)[ROUNDS // 2]:.2f}  (at least 1.8)"
    )


@dataclass(frozen=True)
class Nothing:
    """A job whose units cost nothing."""

    def open(self, resident: dict, worker: int, workers: int):
        def work(units: Iterable[int]) -> Iterator[Answer]:
            for unit in units:
                yield Answer(unit, unit)

        return work


def overhead() -> None:
    for name, workers in (("inline", 1), ("processes", 2)):
        executor = executors.make(name, workers, None, {})
        try:
            for chunk in (1, 16):
                spent = seconds_of(executor, Nothing(), UNITS, chunk) / UNITS
                print(f"{name}, {chunk} units at a time: {spent * 1000:.3f} ms a unit  (limit 1)")
        finally:
            executor.close()


READ = """
import sys, time
from pathlib import Path
from drbench.records import record
start = time.perf_counter()
run, done = record.read(sys.argv[1]), record.Tail(Path(sys.argv[1])).ids()
left = sum(image_id not in done for image_id in run.wanted)
seconds = time.perf_counter() - start
# not ru_maxrss, which a process inherits from the one that started it
(memory,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(f"{left:,} left after {seconds:.1f} s and {memory * 1024 / 1e9:.2f} GB  (limits 10 s, 1 GB)")
"""


def ledger() -> None:
    template = record.read(next(iter(record.find([weights.home() / "results" / "digits" / "full"]))))
    row = next(iter(template.rows.values())).to_json()
    with tempfile.TemporaryDirectory() as folder:
        header = template.header | {"data": template.header["data"] | {"ids": list(range(LEDGER)), "images": LEDGER}}
        record.write_header(Path(folder), header)
        each = LEDGER // WRITERS
        for writer in range(WRITERS):
            lines = (record.encode(row | {"id": image}) for image in range(writer * each, writer * each + each // 2))
            (Path(folder) / f"rows-{writer}-{writer}.jsonl").write_bytes(b"".join(lines))
        print(f"ledger of {WRITERS} writers and {LEDGER:,} images, half of them done:", end=" ", flush=True)
        subprocess.run([sys.executable, "-c", READ, folder], check=True)


if __name__ == "__main__":
    throughput()
    overhead()
    ledger()
