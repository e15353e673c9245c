"""Runs that are paused, overtaken by a run of other settings, and woken up again: how many mix bytes?

`PYTHONPATH=. python benchmarks/pauses.py --times 20` does each case so many times, at seeded random moments, and stops
all processes of a run: in a bucket (a server of S3 on loopback) and on a disk without ``flock``, serially and on Ray,
and with one upload of the paused run held back on its way until the other run has ended; and with programs that do
nothing but write, so that most pauses come within a write. One line each; the exit code is 1 if anything differs from
what the other run gives alone.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated

import pytest
import typer

from chorus.pipeline.io import storage
from tests.support.buckets import Bucket, amazon
from tests.support.faults import no_fault
from tests.support.pausing import (
    COLUMNS,
    OTHERS,
    ROWS,
    Dataset,
    Held,
    contents,
    end,
    overtake,
    overtake_writer,
    start,
)

CASES = ("bucket", "held", "disk", "ray", "writer", "writer on a disk")
_UPLOADS = [f"/s0/c/0/{row}/{column}" for row in range(ROWS) for column in range(COLUMNS)] + ["/ledger/", "labels/"]


def main(
    times: Annotated[int, typer.Option(min=1, help="Repetitions of each case.")] = 20,
    case: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CASES)}; by default all.")] = None,
    seed: int = 0,
) -> None:
    """Repeat every case and print what came out of it."""
    folder = Path(tempfile.mkdtemp(prefix="chorus-pauses-"))
    dataset = Dataset.make(folder)
    expected = {}
    cases = case or CASES
    for name, other in OTHERS.items() if any(not kind.startswith("writer") for kind in cases) else ():
        out = str(folder / name)
        code, said = end(start(dataset.command(out, *other, "--executor", "serial")))
        if code:
            raise SystemExit(said)
        expected[name] = contents(out)
    wrong = 0
    with pytest.MonkeyPatch.context() as monkeypatch, amazon(monkeypatch) as bucket:
        monkeypatch.setenv("CHORUS_LOCK_SECONDS", "1")  # of this process; runs have their own
        for index in range(times):
            for kind in cases:
                wrong += not _once(kind, index, seed, dataset, expected, bucket, folder)
    raise SystemExit(int(wrong > 0))


def _once(
    kind: str,
    index: int,
    seed: int,
    dataset: Dataset,
    expected: dict[str, dict[str, object]],
    bucket: Bucket,
    folder: Path,
) -> bool:
    """Do a case once; return whether it ended as it should."""
    name = list(OTHERS)[index % 2]
    moment = random.Random(f"{seed} {kind} {index}")
    out = str(folder / f"disk-{index}") if kind == "disk" else storage.join(bucket.url, f"{kind}-{index}")
    held = Held(bucket.proxy, "PUT", moment.choice(_UPLOADS)) if kind == "held" else None
    executor = ("--executor", "ray", "--actors", "2") if kind == "ray" else ("--executor", "serial")
    began = time.monotonic()
    try:
        if kind.startswith("writer"):
            place = out if kind == "writer" else str(folder / f"writer-{index}")
            ended = overtake_writer(place, moment, flock=kind == "writer")
        else:
            ended = overtake(
                dataset, out, expected[name], OTHERS[name], *executor, flock=kind != "disk", moment=moment, held=held
            )
    finally:
        bucket.proxy.choose = no_fault
    told = 0 if kind.startswith("writer") else 1
    said_well = ended.said.count("another run took over") == told and "Traceback" not in ended.said
    right = not ended.different and ended.code == 3 and said_well
    line = {"case": kind, "index": index, "other": name, "code": ended.code, "different": ended.different[:5]}
    print(json.dumps(line | {"seconds": round(time.monotonic() - began, 1), "right": right}), flush=True)
    if not right:
        print(ended.said, flush=True)
    return right


if __name__ == "__main__":
    typer.run(main)
