"""Checks of an attack run against itself: feasibility and hashes of the stored examples, counts. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from drbench import norms
from drbench.records import examples
from drbench.records.record import Row, Run
from drbench.stats.robustness import VERSION

OF_FILE = ("sha256", "feasible")  # what the sidecar says of the examples, not of the run


def problems(run: Run) -> list[str]:
    """What is wrong with examples and answers of an attack run.

    Distances are computed anew in float64 from the stored examples and clean images, and the clean images of a complete
    run are compared with the hash of its data. What the defense answers can only be checked by running it.
    """
    engine, found = run.header["engine"], []
    if engine["version"] != VERSION:
        found.append(f"made by attack engine version {engine['version']}, this is version {VERSION}")
    stored = examples.read(run.folder)
    for row in run.ordered():
        if row.evidence is None:
            found += [] if row.error else [f"image {row.id}: neither evidence nor an error"]
        elif row.id not in stored:
            found.append(f"image {row.id}: its adversarial example is not stored")
        else:
            found += [f"image {row.id}: {text}" for text in (*_counts(row, engine), *_example(row, engine, stored))]
    if all(name in run.rows and name in stored for name in run.wanted) and _data_hash(run, stored) != _stated_hash(run):
        found.append("the stored clean images are not those of the run's data set")
    # Parts are dropped last: while there are some, the joined file may be newer than its sidecar.
    joined = (run.folder / examples.WHOLE).exists() and not examples.parts(run.folder)
    return [*found, *(_joined(run, stored) if joined else ())]


def _joined(run: Run, stored: dict) -> Iterator[str]:
    """What the joined file and its sidecar say otherwise than rows and header."""
    ids = examples.arrays(run.folder / examples.WHOLE, ["ids"])["ids"].tolist()
    rows = [run.rows[name] for name in ids if name in run.rows and run.rows[name].evidence]
    if len(rows) < len(ids):
        yield f"{examples.WHOLE}: {len(ids) - len(rows)} of its {len(ids)} examples have no row"
        return
    wanted = examples.columns(rows)
    for name, said in examples.arrays(run.folder / examples.WHOLE, list(wanted)).items():
        if not np.array_equal(said, wanted[name]):
            yield f"{examples.WHOLE}: {name!r} is not what the rows say"
    try:
        about = json.loads((run.folder / examples.SIDECAR).read_text())
    except (OSError, ValueError) as error:
        yield f"{examples.SIDECAR} cannot be read: {error}"
        return
    for key, value in examples.sidecar(run, *(np.stack([stored[name][i] for name in ids]) for i in (1, 2))).items():
        if key != "packages" and about.get(key) != value:  # packages are those of the session that joined them
            yield f"{examples.SIDECAR}: its {key!r} is not that of {examples.WHOLE if key in OF_FILE else 'run.json'}"


def _counts(row: Row, engine: dict) -> list[str]:
    """What is odd about the recorded numbers."""
    seen, n = row.evidence, engine["evaluations"]
    found = [
        f"{answers.count} answers to the {name} image, the run makes {n}"
        for name, answers in (("clean", seen.clean), ("adversarial", seen.adversarial))
        if answers.count != n or not answers.votes.get(answers.first)
    ]
    labels = [each.attack for each in seen.tried]
    known = [name for name in engine["attacks"] if name in labels]
    if labels != known:
        found.append(f"attacks {labels} are not those of the run, in its order")
    if seen.kept and seen.kept not in labels:
        found.append(f"its example is said to come from {seen.kept!r}, which was not run")
    if any(not 0 <= each.failures <= engine["select"] or min(each.gradients, each.forwards) < 0 for each in seen.tried):
        found.append(f"failures outside 0..{engine['select']}, or negative costs")
    return found


def _example(row: Row, engine: dict, stored: dict) -> list[str]:
    """What is wrong with the stored example."""
    label, x, x_adv = stored[row.id]
    if norms.digest(x_adv) != row.evidence.example or label != row.label:
        return ["the stored example or label is not the recorded one"]
    far = float(norms.distance(engine["norm"], x_adv[None], x[None])[0])
    found = []
    if not norms.feasible(engine["norm"], engine["eps"], x_adv[None], x[None])[0]:
        found.append(f"its example is not allowed: distance {far:.9g}, eps = {engine['eps']:.9g}, or outside [0, 1]")
    if not np.isclose(far, row.evidence.distance, rtol=1e-9, atol=1e-12):
        found.append(f"recorded distance {row.evidence.distance!r}, recomputed {far!r}")
    still = np.zeros_like(x_adv) if engine["norm"] == norms.FLOW else x
    if not row.evidence.kept and not np.array_equal(x_adv, still):
        found.append("no attack is named for an example that differs from the clean image")
    return found


def _data_hash(run: Run, stored: dict) -> str:
    """As `drbench.data.Images.sha256`."""
    labels, x = [stored[name][0] for name in run.wanted], np.stack([stored[name][1] for name in run.wanted])
    digest = hashlib.sha256(repr((tuple(run.wanted), labels, x.shape[1:])).encode())
    digest.update(np.ascontiguousarray(x, np.float32).tobytes())
    return digest.hexdigest()


def _stated_hash(run: Run) -> str:
    return run.header["data"]["sha256"]
