"""The command line: verbs, options, exit codes. What a verb does is in `drbench.verbs`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from fractions import Fraction
from pathlib import Path

from drbench import verbs

EXAMPLES = {
    "list": "drbench list defenses\n  drbench list runs results/digits",
    "show": "drbench show benchmarks/digits/denoised-one_shot.yaml\n"
    "  drbench show benchmarks/digits/denoised-pf_ode.yaml defense.args.steps=10",
    "plan": "drbench plan benchmarks/digits/denoised-one_shot.yaml\n"
    "  drbench plan benchmarks/digits/full/*.yaml certify.n=100000",
    "train": "drbench train benchmarks/digits/train/denoiser.yaml\n"
    "  drbench train my.yaml train.checkpoint=weights/mine.safetensors train.recipe.steps=500",
    "run": "drbench run benchmarks/digits/attack/rcm.yaml attack.preset=smoke\n"
    "  drbench run benchmarks/digits/denoised-one_shot.yaml\n"
    "  drbench run benchmarks/digits/*.yaml certify.sigma=0.25 certify.n=1000 --limit 20",
    "resume": "drbench resume results/digits/runs/undefended/*\n  drbench resume results/digits",
    "status": "drbench status results/digits\n  drbench status results/digits/runs/constant",
    "verify": "drbench verify results\n  drbench verify results/digits/full/attacks --rerun",
    "table": "drbench table results/digits/runs --out results/digits/certified\n  drbench table RUN\n"
    "  drbench table --compare results/digits/runs/denoised-one_shot results/digits/runs/noise_augmented\n"
    "  drbench table RUN --norm linf --radii 0 1/255 2/255 8/255",
    "claims": "drbench claims results/digits/full --out results/digits/full/claims",
    "plot": "drbench plot results/digits/runs --out results/digits/certified\n  drbench plot RUN --out curve\n"
    "  drbench plot results/digits/runs --shares --out votes\n  drbench plot results/digits/runs --cost --out cost",
    "gallery": "drbench gallery results/digits/runs/denoised-one_shot --first 2 --out gallery\n"
    "  drbench gallery results/digits/full/attacks/rcm-seed_0/linf-0.125* --images 202 1458 --out attacked",
    "import": "drbench import cohen logs/noise_0.25/test/sigma_0.25 --out imported --dataset cifar10 --defense cohen",
    "compact": "drbench compact results/digits/full/runs",
    "export": "drbench export RUN > log.tsv\n  drbench export RUN --compat > log.tsv",
    "report": "drbench report results/digits/full\n  drbench report results/digits/full/runs/rcm-seed_0 --out rcm.html",
    "reproduce": "drbench reproduce rcm-cifar10\n  drbench reproduce multiscale-cifar10 certify.n=1000 --limit 20",
    "weights": "drbench weights list\n  drbench weights fetch openai/cifar10-uncond-50M\n"
    "  drbench weights add ~/Downloads/edm-cifar10-32x32-cond-vp.pkl",
    "data": "drbench data list\n  drbench data fetch cifar10\n"
    "  drbench data add ~/Downloads/cifar-10-python.tar.gz --link",
    "check": "drbench check noise_augmented\n  drbench check my-package/my-defense",
}

SUFFIXES = (".png", ".svg", ".md", ".csv", ".tex", ".json")  # of what tables, plots and galleries write


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="drbench", description="Certified and adversarial robustness of diffusion defenses."
    )
    top.add_argument("--version", action="store_true", help="print the version")
    all_verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = all_verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"examples:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(action=getattr(verbs, f"do_{name}"))
        return made

    made = verb("list", "list defenses, configs, protocols, presets of attacks, or runs")
    kinds = ("all", "defenses", "configs", "protocols", "presets", "runs")
    made.add_argument("what", nargs="?", default="all", choices=kinds)
    made.add_argument("paths", nargs="*", default=["results"], help="where to look for runs")
    for name, text in (
        ("show", "show the resolved config and the planned work; runs nothing"),
        ("train", "train a defense and write its weights"),
        ("plan", "what a run or sweep will cost: times two warm batches; writes nothing"),
        ("run", "certify or attack; interrupted, the same command goes on"),
    ):
        made = verb(name, text)
        made.add_argument("items", nargs="+", metavar="CONFIG|KEY=VALUE", help="benchmark files and overrides")
        if name == "run":
            made.add_argument("--out", type=_path, help="parent of runs/ (default: results/<data set>)")
            made.add_argument(
                "--strict", action="store_true", help="exit with 1 if the audit of an attack raises a flag"
            )
            made.add_argument("--limit", type=_at_least(1), help="only the first N images; marks the result partial")
            _add_options(made)
    for name, text in (
        ("resume", "finish the runs in these folders"),
        ("status", "progress of runs, from their records alone"),
        ("verify", "recompute every certificate, re-check every adversarial example and every record"),
    ):
        made = verb(name, text)
        made.add_argument("paths", nargs="+", metavar="RUN", help="run folders, or folders above them")
        if name == "verify":
            made.add_argument("--rerun", action="store_true", help="also ask defenses under attack again (loads torch)")
        if name == "resume":
            _add_options(made)
        if name == "status":
            made.add_argument("--watch", type=_at_least(0, float), metavar="SECONDS", help="look again and again")
    for name, text in (
        ("table", "certified accuracy at radii, or robust accuracy under attack, as Markdown, CSV and LaTeX"),
        ("plot", "accuracy against radius, or against eps of attacks, as PNG and SVG"),
    ):
        made = verb(name, text)
        many = "*" if name == "table" else "+"
        made.add_argument("paths", nargs=many, metavar="RUN", help="run folders, or folders above them")
        made.add_argument("--out", type=_stem, required=name == "plot", help="path without suffix")
        made.add_argument("--norm", choices=("l1", "l2", "linf"), help="norm of the radii (default: that of the noise)")
        if name == "plot":
            made.add_argument("--shares", action="store_true", help="distribution of p over the images instead")
        if name == "table":
            made.add_argument("--radii", nargs="+", type=_radius, metavar="R", help="radii, as 0.5 or 2/255")
            made.add_argument("--paper", metavar="KEY", help="published numbers with these runs beside them, or `list`")
            made.add_argument("--compare", nargs=2, metavar=("A", "B"), help="paired differences of A and B")
            made.add_argument(
                "--head-to-head", action="store_true", help="all rows at the same draws, with their costs"
            )
        made.add_argument("--cost", action="store_true", help="certified accuracy against evaluations and seconds")
    made = verb("report", "one HTML page of runs: tables, curves, attacks, down to the votes of each image")
    made.add_argument("paths", nargs="*", default=["results"], metavar="RUN", help="run folders, or folders above them")
    made.add_argument(
        "--out", type=_path, default=Path("results/report.html"), metavar="FILE", help="default: %(default)s"
    )
    made = verb("claims", "what the papers claim, and what runs say: verdicts as Markdown, CSV and LaTeX")
    made.add_argument("paths", nargs="+", metavar="RUN", help="run folders of both tasks, or folders above them")
    made.add_argument("--claims", type=_path, metavar="FILE", help="other claims than benchmarks/claims.yaml")
    made.add_argument("--out", type=_stem, help="path without suffix")
    made = verb("gallery", "pictures: images with noise, purified, attacked, with recorded verdicts (loads torch)")
    made.add_argument("paths", nargs="+", metavar="RUN", help="run folders, or folders above them")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--images", nargs="+", metavar="ID", help="ids of images in the data set")
    which.add_argument(
        "--first", type=_at_least(1), metavar="N", help="the first N that all runs have done (default: 3)"
    )
    made.add_argument("--out", type=_stem, required=True, help="path without suffix: PNG, SVG, JSON with alt text")
    made = verb("import", "certification logs of other projects, as run folders")
    made.add_argument("format", help="cohen, densepure, rrcm, multiscale, iss, ars or ensembles")
    made.add_argument("files", nargs="+", type=_path, metavar="FILE")
    made.add_argument("--out", type=_path, required=True, help="parent of runs/")
    for name, kind, text in (
        ("dataset", str, "name of the data set; known sizes tell whether images are missing"),
        ("defense", str, "name in tables (default: that of the file)"),
        ("variant", str, "printed beside the name"),
        ("sigma", float, "noise level, pixel units (default: from a part sigma_S of the path)"),
        ("n0", int, "selection draws"),
        ("n", int, "estimation draws"),
        ("alpha", float, "failure probability"),
        ("dimension", int, "pixels x channels: turns l-infinity radii into l2 radii"),
        ("target", float, "radius of logs that only say whether it was reached"),
    ):
        made.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=text)
    made = verb("compact", "runs as Parquet files beside their records")
    made.add_argument("paths", nargs="+", metavar="RUN", help="run folders, or folders above them")
    made = verb("export", "a run as a log of Cohen et al. 2019, tab separated")
    made.add_argument("run", type=_path, metavar="RUN")
    made.add_argument("--compat", action="store_true", help="radii with 3 significant digits, rounded to nearest")
    made = verb("reproduce", "a table of a paper: what is missing, the runs that can be made, the table")
    made.add_argument("items", nargs="+", metavar="KEY|KEY=VALUE", help="key of the table, or `list`; and overrides")
    made.add_argument("--out", type=_path, help="parent of runs/ and of the table (default: results/<data set>)")
    made.add_argument("--limit", type=_at_least(1), help="only the first N images; marks the results partial")
    _add_options(made)
    for name, actions in (("weights", ("list", "fetch", "add", "convert", "verify")),
                          ("data", ("list", "fetch", "add", "verify"))):  # fmt: skip
        made = verb(name, f"{name} of others: where they are, bring them here; only `fetch` uses the network")
        made.add_argument("do", choices=actions, help="what to do; add takes over a local file")
        made.add_argument("names", nargs="*", metavar="NAME|FILE", help="names of the list, or files for add")
        made.add_argument("--name", help="add: what the file is, if its file name does not say it")
        made.add_argument("--link", action="store_true", help="add: a symbolic link instead of a copy")
        if name == "weights":
            made.add_argument("--revision", metavar="COMMIT", help="fetch: 40 digits, where the list pins none")
        else:
            made.add_argument("--layout", help="fetch: which of a data set's layouts")
    verb("check", "conformance suite of one defense").add_argument("name")
    return top


def _add_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th image from the I-th on")
    made.add_argument("--max-errors", type=_at_least(0), default=10, help="images that may fail before the run stops")
    made.add_argument("--retry-errors", action="store_true", help="do images again that were recorded as errors")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 failed check or verification, 2 a mistake that the message explains, 130 interrupted."""
    from drbench.errors import DrbenchError

    args, rest = parser().parse_known_args(argv)
    if rest and (not hasattr(args, "items") or any(word.startswith("-") for word in rest)):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides may also come after options
        args.items += rest
    if args.version:
        from importlib.metadata import version

        print(version("drbench"))
        return 0
    if args.verb is None:
        parser().print_help()
        return 0
    try:
        return args.action(args) or 0
    except DrbenchError as error:
        print(f"drbench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("drbench: interrupted; what was recorded is safe, the same command goes on", file=sys.stderr)
        return 130


def _at_least(least: int, kind: type = int):
    """A parser of numbers that are not below `least`."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not number >= least:
            raise argparse.ArgumentTypeError(f"expected a number >= {least}, got {text!r}")
        return number

    return parse


def _radius(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a radius such as 0.5 or 2/255, got {text!r}") from error


def _shard(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {text!r}")
    return int(first), int(count)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # shells leave --out=~/x as it is


def _stem(text: str) -> Path:
    """A path to which suffixes are added; one of those is taken off, others (sigma0.25) belong to the name."""
    if not Path(text).name or text.endswith(("/", "/.", "..")):
        raise argparse.ArgumentTypeError(f"expected a path without suffix, such as results/certified, got {text!r}")
    path = _path(text)
    return path.with_suffix("") if path.suffix in SUFFIXES else path
