"""The starter ensemble's images: fields are whole on one side."""

from __future__ import annotations

from pathlib import Path

from benchmarks.starter import REFERENCE, fields, gather, reference_fields


def test_reference_fields_are_whole_as_many_as_asked_and_the_same_in_any_order() -> None:
    groups = {f"image-{index}": f"field-{index // 3}" for index in range(60)}
    chosen = reference_fields(groups, 20)
    assert sum(group in chosen for group in groups.values()) == 18  # 20 images are no whole number of fields
    assert reference_fields(dict(reversed(groups.items())), 20) == chosen
    assert reference_fields(groups, 9) < chosen


def test_no_field_is_both_learnt_and_judged_by(shared_data: Path, tmp_path: Path) -> None:
    gather(shared_data, tmp_path)
    names = {
        place: {path.stem for path in (tmp_path / place / "images").iterdir()} for place in ("training", "reference")
    }
    assert len(names["reference"]) == sum(REFERENCE.values())
    assert len(names["training"]) == 80 - len(names["reference"])
    for place in names:
        assert {path.stem for path in (tmp_path / place / "labels").iterdir()} == names[place]
    for data in REFERENCE:
        of_field = fields(shared_data / data)
        learnt, judged = (
            {of_field[name.partition("-")[2]] for name in names[place] if name.startswith(data)} for place in names
        )
        assert learnt
        assert judged
        assert not learnt & judged
