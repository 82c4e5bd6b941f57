"""Everything that a run says about itself: result, weights, images, protocol, code, environment, cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from drbench import stats
from drbench.records.record import Run
from drbench.report import attacked, evidence
from drbench.report.book import Book
from drbench.report.grid import Cell, Column, Line, Table
from drbench.tables import halting, pareto, summary
from drbench.tables.frames import named_rows
from drbench.tables.summary import SHARES

COLUMNS = [Column(text, numeric) for text, numeric in (
    ("record", False), ("task", False), ("images", True), ("images sha256", False), ("n0", True), ("N", True),
    ("alpha", True), ("seed", True), ("precision", False), ("device", False), ("checkpoints sha256", False),
    ("config", False), ("code", False), ("evidence sha256", False), ("verification", False))]  # fmt: skip


def of(book: Book, number: int) -> dict:
    """What the page opens for one run: facts in words, the header without the image ids, the config, the evidence."""
    run = book.runs[number]
    header = {**run.header, "data": {key: value for key, value in run.header["data"].items() if key != "ids"}}
    config = run.folder / "config.yaml"
    return {
        "name": name(run),
        "title": run.header.get("title", ""),
        "place": summary.place(run),
        "badges": [badge._asdict() for badge in book.badges[number]],
        "facts": [[group, [[key, str(value)] for key, value in facts]] for group, facts in _facts(book, number)],
        "header": json.dumps(header, indent=1, ensure_ascii=False),
        "config": config.read_text(encoding="utf-8") if config.exists() else "",
        "evidence": evidence.of(run),
    }


def name(run: Run) -> str:
    """Defense, noise and threat of a run."""
    defense, engine = run.header["defense"], run.header["engine"]
    text = defense["name"] + (f" ({defense['variant']})" if defense["variant"] else "")
    if run.task == "attack":
        return f"{text}, {engine['norm']} ≤ {engine['eps_text']}" + (
            f", σ = {engine['sigma']:g}" if engine["sigma"] else ""
        )
    return f"{text}, {'over' if len(stats.levels(engine)) > 1 else 'at'} σ = {summary.scales(engine)}"


def _facts(book: Book, number: int) -> Iterator[tuple[str, list]]:
    run = book.runs[number]
    header, defense, data = run.header, run.header["defense"], run.header["data"]
    found = book.problems[number]
    yield "Record", [
        ("folder", summary.place(run)), ("status", f"{len(run.rows)} of {len(run.wanted)} images recorded"),
        ("verification", "; ".join(found) or _verified(run)), *(("flag", flag) for flag in header["flags"]),
        ("config hash", header["identity"]), ("evidence sha256", header.get("evidence_sha256", "not ended")),
    ]  # fmt: skip
    yield "Checkpoints", list(defense.get("checkpoints", {}).items()) or [("weights", "none")]
    yield "Images", [
        ("data set", data["name"]), ("subset", data["subset"]), ("number", data["images"]),
        ("sha256", data["sha256"] or "unknown: imported"), ("shape", data.get("shape", "unknown")),
    ]  # fmt: skip
    yield "Protocol", list(_protocol(header))
    if run.task == "certify":
        yield "Beside the averages", list(_beside(book, number))
    for attack, settings in header["engine"].get("attacks", {}).items():
        yield f"Attack: {attack}", list(settings.items())
    if "audit" in header:
        audit, cell = header["audit"], attacked.audit(run)
        compared, probed = (len(audit.get(key, audit["ids"])) for key in ("ids", "probed"))
        images = f"attacks compared on {compared} images, the function probed on {probed}"
        found = [(_flagged(*each[:2]), each[2]) for each in audit["findings"]]
        yield "Audit", [("result", f"{cell.text}; {cell.below}, {images}"), *found]
    yield "Defense", [
        ("citation", defense.get("citation", "–")), ("arguments", json.dumps(defense.get("args", {}))),
        ("parameters", f"{defense['parameters']:,}" if "parameters" in defense else "–"),
        ("randomised", defense.get("randomized", "–")), ("gradient", defense.get("gradient", "–")),
        ("network calls per draw", _calls(defense["nfe"])),
        *((f"at σ = {sigma}", _calls(nfe)) for sigma, nfe in defense.get("nfe_at", {}).items()),
    ]  # fmt: skip
    yield "Cost", [(key.replace("_", " "), _text(value)) for key, value in header.get("cost", {}).items()]
    yield "Code", _code(header["code"])
    for session in header.get("sessions", []):
        about, spent = session["environment"], f"{session.get('started')} to {session.get('ended', 'killed')}"
        yield "Environment", [("time", spent), *((key, _text(value)) for key, value in about.items())]


def _verified(run: Run) -> str:
    if run.header["engine"].get("certifier") == "imported":
        return "checksums agree; a log's certificates cannot be recomputed"
    return ("every example is inside its bound and as hashed" if run.task == "attack" else
            "every certificate follows from its votes") + "; checksums and hash of the evidence agree"  # fmt: skip


def _protocol(header: Mapping) -> Iterator[tuple[str, object]]:
    engine = header["engine"]
    if "certifier" in engine:
        yield "noise", f"{summary.noise(engine)}, σ = {summary.scales(engine)}"
    yield from ((key, _text(value)) for key, value in engine.items() if key not in ("attacks", "sigma"))
    if "certifier" not in engine:
        yield "σ of the deployed defense", engine["sigma"]
    if summary.preset(header):
        yield "protocol of a paper", summary.preset(header)


def _beside(book: Book, number: int) -> Iterator[tuple[str, str]]:
    """What the averages of the run hide, and for a cascade where it stops."""
    run = book.runs[number]
    for frame in book.certified:
        for row in named_rows(frame[frame["run"] == summary.place(run)].head(1)):
            yield (
                "ACR",
                f"{row.acr:.3f} [{row.acr_low:.3f}, {row.acr_high:.3f}]; a constant answer gets {row.acr_constant:.3f}",
            )
            yield "ACR of the easiest tenth", f"{100 * row.acr_easiest:.0f} %"
            yield "median radius", f"{row.radius_median:.3f}"
            yield "ceiling radius", f"{row.ceiling:.4f} ({row.norm}, pixel units)"
            quantiles = (f"{getattr(row, share):.3f} at {share.removeprefix('p_')} %" for share in SHARES)
            if getattr(row, SHARES[0]) == getattr(row, SHARES[0]):
                yield "label's share of votes", ", ".join(quantiles)
            yield (
                "sure, r = 0",
                f"{100 * row.certified_accuracy_high_probability:.1f} %, less possible false certificates",
            )
            yield "evaluations per image", f"{pareto.evaluations(run):,.0f}"
    for row in named_rows(halting.frame([run])):
        for kind in ("halted", "undecided"):
            yield f"{kind} at σ = {row.sigmas}", " / ".join(f"{100 * share:.1f} %" for share in getattr(row, kind))
        for kind in ("certified_cascade", "cascade_fallback", "prior_mixed", "clean"):
            share = getattr(row, kind)
            yield f"accuracy, {kind.replace('_', ' ')}", f"{100 * share:.1f} %" if share == share else "–"


def _flagged(check: str, flag: bool) -> str:
    return f"{check}: FLAG" if flag else check


def _code(code: Mapping) -> list[tuple[str, str]]:
    commit = (code["commit"] or "unknown") + (", dirty: the code differed from its commit" if code["dirty"] else "")
    sources = [(f"sources of the {'harness' if key == 'drbench' else key}", value)
               for key, value in code.get("sources", {}).items()]  # fmt: skip
    return [("commit", commit), ("version", code["version"] or "unknown"), *sources]


def _calls(nfe: Mapping) -> str:
    return ", ".join(f"{network} {calls:g}" for network, calls in nfe.items()) or "none"


def _text(value) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def provenance(book: Book) -> Table:
    """One line a run: what made it. Hashes are shortened here, whole at the run."""
    lines = [
        Line(i, name(run), book.badges[i], list(_made_of(run, book.problems[i]))) for i, run in enumerate(book.runs)
    ]
    return Table("provenance", "What made each run", COLUMNS, lines)


def _made_of(run: Run, found: list[str]) -> Iterator[Cell]:
    header, engine, data = run.header, run.header["engine"], run.header["data"]
    environments = [session["environment"] for session in header.get("sessions", [])]
    yield from (Cell(summary.place(run)), Cell(run.task))
    yield Cell(f"{len(run.rows)}", len(run.rows), f"of {len(run.wanted)}, {data['name']} {data['subset']}")
    yield Cell((data["sha256"] or "–")[:8])
    for key in ("n0", "n", "alpha", "seed"):
        yield Cell(f"{engine[key]:,}", engine[key]) if key in engine else Cell("–")
    for key in ("precision", "device"):
        yield Cell(", ".join(dict.fromkeys(str(each[key]) for each in environments)) or "–")
    yield Cell(" ".join(sha256[:8] for sha256 in header["defense"].get("checkpoints", {}).values()) or "–")
    yield from (Cell(header["identity"][:8]), Cell((header["code"]["commit"] or "–")[:8]))
    yield Cell(header.get("evidence_sha256", "–")[:8])
    yield Cell("failed" if found else "ok", len(found), "; ".join(found[:1]))
