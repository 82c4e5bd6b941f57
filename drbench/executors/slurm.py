"""A run as an array of jobs of a SLURM cluster, through submitit (`pip install drbench[slurm]`).

Each job is the same command with `run.executor=inline`: the jobs share the run folders, take images that none of the
others has claimed, and end when nothing is left. Any of them may die or come late.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from drbench.errors import DrbenchError

LOGS = Path(".drbench") / "slurm"


def array(work: Callable[[int], object], jobs: int, parameters: Mapping) -> None:
    """Submit `work(0)`, ..., `work(jobs - 1)` and wait for all.

    Parameters
    ----------
    parameters : mapping
        As submitit names them: timeout_min, slurm_partition, gpus_per_node, cpus_per_task, ...; `cluster: local` runs
        the jobs on this machine.
    """
    try:
        import submitit
    except ImportError as error:
        raise DrbenchError("run.executor=slurm needs submitit: pip install 'drbench[slurm]'") from error
    parameters = dict(parameters)
    executor = submitit.AutoExecutor(folder=LOGS, cluster=parameters.pop("cluster", None))
    try:
        executor.update_parameters(**{"name": "drbench", "timeout_min": 24 * 60} | parameters)
    except (NameError, TypeError) as error:
        raise DrbenchError(f"run.slurm: {error}") from error
    submitted = executor.map_array(work, range(jobs))
    print(f"{jobs} jobs: {', '.join(job.job_id for job in submitted)}; logs in {os.path.abspath(LOGS)}", flush=True)
    failed = [job for job in submitted if job.exception() is not None]
    if len(failed) == len(submitted):
        raise DrbenchError(f"all jobs failed, the first with: {failed[0].exception()}")
