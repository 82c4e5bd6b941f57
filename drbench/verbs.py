"""What each verb of the command line does: a few lines that call the function that does the work.

Imports are inside the functions, so that a verb loads what it needs alone. A function takes the parsed arguments, and
returns the exit code, None for 0.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def _cells(items: list[str]) -> list:
    """Resolved configs of all files among the items, under all overrides among them."""
    from drbench import config
    from drbench.errors import DrbenchError

    files = [item for item in items if "=" not in item]
    if not files:
        raise DrbenchError("expected at least one benchmark file, e.g. benchmarks/digits/denoised-one_shot.yaml")
    return [cell for file in files for cell in config.load(file, [item for item in items if "=" in item])]


def do_list(args) -> None:
    from drbench import catalogue

    if args.what in ("all", "defenses"):
        print(catalogue.defenses())
    if args.what in ("all", "configs"):
        print(catalogue.configs())
    if args.what in ("all", "protocols"):
        print(catalogue.published_protocols())
    if args.what in ("all", "presets"):
        print(catalogue.attack_presets())
    if args.what == "runs" or (args.what == "all" and any(Path("results").rglob("run.json"))):
        print(catalogue.runs(args.paths))


def do_show(args) -> None:
    from drbench import catalogue

    for cell in _cells(args.items):
        print(catalogue.plan(cell))


def do_plan(args) -> None:
    from drbench.planning import plan

    print(plan.render(plan.measure(_cells(args.items))))


def do_train(args) -> None:
    from drbench.errors import DrbenchError
    from drbench.jobs import fitting

    # A sweep over noise levels is about the runs that come later: one training serves them all.
    cells = {str((cell.defense, cell.data.name, cell.train, cell.run.seed)): cell for cell in _cells(args.items)}
    for cell in cells.values():
        if cell.train is None:
            raise DrbenchError(
                "expected a benchmark file with a section 'train', e.g. benchmarks/digits/train/denoiser.yaml"
            )
        written = fitting.train(cell, "drbench train " + " ".join(args.items))
        print(f"{written.path} sha256 {written.sha256}")


def do_run(args) -> int:
    from drbench.jobs import audit_job, runner

    folders = runner.run(_cells(args.items), args.out, options=_options(args))
    flags = audit_job.flags(folders)
    for flag in flags:
        print(flag, file=sys.stderr)
    return 1 if flags and args.strict else 0


def do_resume(args) -> None:
    from drbench.jobs import runner
    from drbench.records import record

    for folder in record.find(args.paths):
        runner.resume(folder, _options(args))


def do_status(args) -> None:
    from drbench import catalogue

    print(catalogue.runs(args.paths))
    while args.watch:
        time.sleep(args.watch)
        print(f"\n{time.strftime('%H:%M:%S')}\n{catalogue.runs(args.paths)}", flush=True)


def do_verify(args) -> int:
    from drbench.errors import DrbenchError
    from drbench.records import record, verify

    failed = 0
    for folder in record.find(args.paths):
        try:
            run = record.read(folder)
            found = verify.problems(run) or _asked_again(args, folder)
            progress = f"{len(run.rows)} of {len(run.wanted)} images"
            verdict = "FAILED" if found else "ok" if run.complete else "partial"
        except DrbenchError as error:
            found, progress, verdict = [str(error)], "not readable", "FAILED"
        failed += verdict == "FAILED"
        print(f"{verdict:8}{folder}: {progress}")
        for problem in found:
            print(f"        {problem}")
        for oddity in [] if verdict == "FAILED" else run.header.get("log", {}).get("oddities", []):
            print(f"        note: {oddity}")
    return 1 if failed else 0


def _asked_again(args, folder: Path) -> list[str]:
    if not args.rerun:
        return []
    from drbench.jobs import runner

    return runner.rerun(folder)


def _only_certified(runs, word: str) -> None:
    from drbench.errors import DrbenchError

    for run in runs:
        if run.task != "certify":
            raise DrbenchError(f"{word} expects certifications, {run.folder} is an attack: `drbench table` shows it")


def do_table(args) -> None:
    from drbench.comparisons import compare
    from drbench.errors import DrbenchError
    from drbench.records import record
    from drbench.tables import certified_tables, halting, pareto, robust_tables, summary

    if args.paper:
        _table_of_paper(args)
        return
    if bool(args.paths) == bool(args.compare):
        raise DrbenchError("expected run folders, or --compare A B")
    if args.compare:
        sides = [[record.read(folder) for folder in record.find([path])] for path in args.compare]
        _only_certified([run for side in sides for run in side], "--compare")
        differences = compare.compare(*sides, args.radii, args.norm)
        if args.out is None:
            print(compare.render(differences))
        else:
            print(*compare.write(differences, args.out))
        return
    if args.head_to_head:
        from drbench.comparisons import head_to_head, head_to_head_tables

        page = head_to_head.frame([record.read(folder) for folder in record.find(args.paths)])
        print(*(head_to_head_tables.write(page, args.out) if args.out else [head_to_head_tables.render_markdown(page)]))
        return
    runs, task = _runs_of_one_task(args.paths)
    for option in ("cost", "norm", "radii", "shares"):
        if getattr(args, option, None):
            _only_certified(runs, f"--{option}")
    if task == "attack":
        attacked = robust_tables.frame(runs)
        print(*(robust_tables.write(attacked, args.out) if args.out else [robust_tables.render_markdown(attacked)]))
        return
    if args.cost:
        costs = pareto.frame(runs, args.radii or pareto.RADII)
        print(pareto.render(costs) if args.out is None else " ".join(map(str, pareto.write(costs, args.out))))
        return
    frame, cascades = summary.frame(runs, args.radii, args.norm), halting.frame(runs)
    if args.out is None:
        print(certified_tables.render_markdown(frame, cascades))
    else:
        certified_tables.write(frame, args.out, cascades)
        print(f"{args.out}.md {args.out}.csv {args.out}.tex")


def _table_of_paper(args) -> None:
    from drbench import weights
    from drbench.papers import published
    from drbench.records import record

    folder = weights.home() / "benchmarks" / "published"
    if args.paper == "list":
        print("\n".join(published.papers(folder)))
        return
    runs = [record.read(found) for found in record.find(args.paths)] if args.paths else []
    frame = published.beside(folder, args.paper, runs)
    if args.out is None:
        print(published.render(frame), end="")
    else:
        print(*published.write(frame, args.out))


def do_claims(args) -> None:
    from drbench.comparisons import claim_tables, claims
    from drbench.records import record

    table = claims.judge([record.read(folder) for folder in record.find(args.paths)], args.claims)
    print(*(claim_tables.write(table, args.out) if args.out else [claim_tables.render_markdown(table)]))


def do_plot(args) -> None:
    from drbench.plots import certified_plots, pareto_plot, robust_plots, share_plot

    runs, task = _runs_of_one_task(args.paths)
    for option in ("cost", "norm", "radii", "shares"):
        if getattr(args, option, None):
            _only_certified(runs, f"--{option}")
    if task == "attack":
        written = robust_plots.robust_curves(runs, args.out)
    elif args.cost:
        written = pareto_plot.cost_curves(runs, args.out)
    elif args.shares:
        written = share_plot.share_curves(runs, args.out)
    else:
        written = certified_plots.radius_curves(runs, args.out, args.norm)
    print(*written)


def do_report(args) -> None:
    import gc

    from drbench.records import record
    from drbench.report import render

    gc.disable()  # hardly anything made here can be freed before the page is written: a tenth of the time
    print(render.write([record.read(folder) for folder in record.find(args.paths)], args.out, args.paths))


def do_gallery(args) -> None:
    from drbench.gallery import drawing, gathering
    from drbench.records import record

    folders = dict.fromkeys(folder for path in args.paths for folder in record.find([path]))  # in the order of columns
    runs = [record.read(folder) for folder in folders]
    print(*drawing.draw(gathering.gather(runs, args.images, args.first), args.out))


def _runs_of_one_task(paths: list[str]) -> tuple[list, str]:
    """The runs at or below these paths: all certify, or all attack."""
    from drbench.errors import DrbenchError
    from drbench.records import record

    runs = [record.read(folder) for folder in record.find(paths)]
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise DrbenchError(
            f"expected runs of one task, got {' and '.join(tasks)} at or below {', '.join(paths)}; "
            "certifications are in the folder runs, attacks in the folder attacks"
        )
    return runs, tasks[0]


def do_import(args) -> None:
    from drbench.records import logs

    known = logs.Settings.__dataclass_fields__
    settings = logs.Settings(**{name: value for name, value in vars(args).items() if name in known})
    for file in args.files:
        folder, odd = logs.import_log(file, args.format, settings, args.out)
        print(folder)
        for text in odd:
            print(f"  note: {text}", file=sys.stderr)


def do_compact(args) -> None:
    from drbench.records import compact, record

    for folder in record.find(args.paths):
        print(compact.write(record.read(folder)))


def do_export(args) -> None:
    from drbench.records import logs, record

    run = record.read(args.run)
    _only_certified([run], "export")
    print(logs.cohen_tsv(run, args.compat), end="")


def do_reproduce(args) -> None:
    from drbench.papers import reproduce

    key, *overrides = sorted(args.items, key=lambda item: "=" in item)
    if key == "list":
        print("\n".join(f"{key}: {' '.join(files)}" for key, files in reproduce.keys().items()))
        return
    for line in reproduce.reproduce(key, overrides, args.out, _options(args)):
        print(line, flush=True)


def do_weights(args) -> None:
    from drbench import stock

    for line in stock.weights(args.do, args.names, args.name, args.revision, args.link):
        print(line, flush=True)


def do_data(args) -> None:
    from drbench import stock

    for line in stock.data(args.do, args.names, args.name, args.layout, args.link):
        print(line, flush=True)


def do_check(args) -> int:
    from drbench import registry, testing

    def report(result: testing.Result) -> None:
        print(
            f"{result.status:8}{result.check} ({result.shape}){': ' * bool(result.message)}{result.message}", flush=True
        )

    failed = sum(result.status == "failed" for result in testing.check(registry.find(args.name), report))
    print(f"{args.name}: {failed} checks failed" if failed else f"{args.name}: conforms")
    return 1 if failed else 0


def _options(args):
    from drbench.jobs.runner import Options

    return Options(getattr(args, "limit", None), args.shard, args.max_errors, args.retry_errors)
