"""What benchmarks keep can be compared with what they kept before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compare import changes, figures, main, row_name
from benchmarks.records import keep

OLD = {"tile": 256, "members": 2, "whole_seconds": 100.0, "bare_over_whole": 0.6, "peaks": [1, 3], "quick": True}


def test_rows_of_before_backends_were_named_are_those_of_eager_fp32() -> None:
    assert row_name(OLD) == row_name(OLD | {"backend": "eager", "precision": "fp32", "whole_seconds": 3.0})
    assert row_name(OLD) != row_name(OLD | {"backend": "inductor"})


def test_figures_are_all_numbers_that_were_measured_and_nothing_else() -> None:
    assert figures(OLD | {"devices_were": {"busy": 0.9}}) == {
        "whole_seconds": 100.0,
        "bare_over_whole": 0.6,
        "peaks": 2.0,
        "devices_were busy": 0.9,
    }


def test_only_what_changed_by_more_than_the_threshold_is_told() -> None:
    new = OLD | {"whole_seconds": 70.0, "bare_over_whole": 0.61, "peaks": [1, 3]}
    assert changes(OLD, new, 0.05) == [("whole_seconds", 100.0, 70.0)]
    assert [name for name, _, _ in changes(OLD, new, 0.001)] == ["whole_seconds", "bare_over_whole"]


def test_two_kept_results_are_compared_with_their_machines_and_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("-old", 100.0), ("-new", 50.0)):
        keep(tmp_path, name, [OLD | {"whole_seconds": seconds}])
    old, new = (next(tmp_path.glob(f"*{name}.json")) for name in ("-old", "-new"))
    content = json.loads(new.read_text())
    content["versions"]["torch"] = "0.0"
    new.write_text(json.dumps(content))
    capsys.readouterr()
    main(old, new, 0.05)
    said = capsys.readouterr().out
    assert "versions torch" in said
    assert "0.500" in said
    assert "bare_over_whole" not in said
