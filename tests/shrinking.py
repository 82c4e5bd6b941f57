"""Benchmark files of the papers made small: the same architectures with few channels and random weights, few draws."""

import pytest

from drbench.attacks import suite, views
from drbench.jobs import runner
from drbench.records import record, verify

SETTINGS = {"steps": 2, "votes": 2, "width": 32, "depth": 1, "heads": 2}


def shrink(cell, networks, settings=SETTINGS):
    """`networks`: kind of network -> what of its configuration is small; `settings`: of the defense, if it has such."""
    args = cell.defense.args
    for part in ("denoiser", "classifier", "purifier"):
        if part in args:
            kind = args[part].preset.partition("/")[0] if "preset" in args[part] else args[part].kind
            args[part] = {**args[part], **networks[kind]}
    for key, value in settings.items():
        if key in args:
            args[key] = value
    cell.defense.checkpoint = []
    return few(cell)


def few(cell):
    """Few draws and steps, the same number for all."""
    if "likelihood" in cell.defense.args:
        cell.defense.args.likelihood.steps = 1
    cell.certify.n0, cell.certify.n, cell.certify.block, cell.run.batch_rows = 2, 20, 10, 4
    cell.attack.evaluations, cell.attack.select, cell.attack.worst_of, cell.attack.audit = 2, 1, 1, 0
    for attack in cell.attack.attacks or []:
        attack.steps, attack.draws = 1, 1
    return cell


def run(cells, out):
    """Run them all and read the runs, which are complete, consistent and without errors; attacks took gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SURELY_BROKEN", 2)  # untrained networks are wrong on most images: attack all
        patch.setattr(views, "SMALLEST", 1)  # no padding: calls of one row
        runs = [record.read(folder) for folder in runner.run(cells, out)]
    for each in runs:
        assert each.complete and verify.problems(each) == [] and not any(row.error for row in each.rows.values())
        assert each.task == "certify" or each.header["cost"]["gradients_per_image"] > 0
    return runs
