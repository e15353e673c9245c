"""What a killed process was writing is removed when the run resumes."""

from __future__ import annotations

from pathlib import Path

from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.runs import run


def test_a_resumed_run_removes_what_killed_processes_were_writing(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.ome.zarr", pixels((100, 130)))
    ensemble, out = write_light_ensemble(tmp_path / "ensemble", width=4), tmp_path / "out"
    run(image, ensemble, out)
    results = out / "images" / "a.ome.zarr"
    files = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    for name in ("image.json", "region-00000001.json"):
        (out / "ledger" / "a.ome.zarr" / name).unlink()
    (out / "attempts" / "earlier").mkdir(parents=True)
    (out / "attempts" / "earlier" / "1").write_text("node\n")
    (results / "s0" / "c" / "0" / "0" / ".0123456789abcdef.part").write_bytes(b"half")
    (results / "labels" / "semantic" / "s0" / ".fedcba9876543210.part").touch()
    run(image, ensemble, out)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == files
