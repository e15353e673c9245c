"""Commands that resume: what is kept, what begins anew, what is refused; also when their records were cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import (
    Command,
    Execution,
    RecordWithSurroundings,
    Running,
    begin_inside,
    earlier_record,
    plan_files,
    planned_files,
    read_record,
    resumable,
)
from chorus.cluster.state.items import ItemLedger
from chorus.cluster.state.outcome import ItemRow, State, count, failures_of, state_of
from chorus.pipeline.errors import RefusedError


class Settings(BaseModel):
    edge: int = 3


class DemoSummary(BaseModel):
    words: list[str]


class DemoRecord(RecordWithSurroundings):
    command: str = "demo"
    settings: Settings = Settings()
    run: Execution = Execution(executor="serial")
    sources: list[str] = Field(default=["in"])
    summary: DemoSummary | None = None


class Counted(BaseModel):
    pixels: int


def command(out: Path, file: str = "demo.json", edge: int = 3, executor: str = "serial") -> Command[DemoRecord]:
    record = DemoRecord(settings=Settings(edge=edge), run=Execution(executor=executor))
    return Command(str(out), record, file, ("settings",))


def begun(out: Path, edge: int = 3, executor: str = "serial") -> Running[DemoRecord]:
    one = command(out, edge=edge, executor=executor)
    with one.held():
        return begin_inside(one, earlier_record(one), lambda: ["table", "work/demo"])


def leave(out: Path) -> None:
    """What a call leaves before its end, and what others leave beside it."""
    (out / "work" / "demo").mkdir(parents=True, exist_ok=True)
    for name in ("table", "work/demo/a.json", "work/other", "mine.txt"):
        (out / name).write_text("x")


def left(out: Path) -> set[str]:
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    return names - {"run.lock", "demo.json", "run.json"}


PLACES = st.floats(0, 1, exclude_max=True)
"""Where a file is cut, as a share of its length."""

ALL = {"table", "work/demo/a.json", "work/other", "mine.txt"}


def test_an_interrupted_call_is_resumed_and_keeps_its_time_and_what_is_finished(tmp_path: Path) -> None:
    first = begun(tmp_path)
    leave(tmp_path)
    first.close("interrupted", summary=DemoSummary(words=["never"]))
    second = begun(tmp_path, executor="ray")
    assert (first.resumed, second.resumed) == (False, True)
    assert second.record.started == first.record.started
    assert left(tmp_path) == ALL
    assert json.loads((tmp_path / "demo.json").read_text())["run"]["executor"] == "ray"


@pytest.mark.parametrize("ended", ["complete", "failures"])
def test_a_call_after_one_that_ended_begins_anew(tmp_path: Path, ended: State) -> None:
    first = begun(tmp_path)
    leave(tmp_path)
    first.close(ended, summary=DemoSummary(words=["some"]))
    found = read_record(str(tmp_path), "demo.json", DemoRecord)
    assert found is not None
    assert (found.outcome, found.summary) == (ended, DemoSummary(words=["some"]))
    assert found.finished is not None
    assert not begun(tmp_path).resumed
    assert left(tmp_path) == {"work/other", "mine.txt"}


def test_other_settings_replace_what_is_there_and_nothing_of_others(tmp_path: Path) -> None:
    begun(tmp_path)
    leave(tmp_path)
    assert not begun(tmp_path, edge=4).resumed
    assert left(tmp_path) == {"work/other", "mine.txt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cut")


@settings(max_examples=80, deadline=None)
@given(place=PLACES, tail=st.binary(max_size=6))
def test_a_record_that_was_cut_anywhere_is_one_sentence_and_its_command_begins_anew(
    folder: Path, place: float, tail: bytes
) -> None:
    begun(folder)
    path = folder / "demo.json"
    whole = path.read_bytes()
    cut = whole[: int(place * len(whole))] + tail
    if cut.rstrip() == whole:
        return
    path.write_bytes(cut)
    with pytest.raises(RefusedError) as refused:
        read_record(str(folder), "demo.json", DemoRecord)
    assert "demo.json: is damaged (" in str(refused.value)
    assert str(refused.value).endswith("run `chorus demo` again")
    assert "\n" not in str(refused.value)
    leave(folder)
    assert not begun(folder).resumed
    assert left(folder) == {"work/other", "mine.txt"}


@contextmanager
def owned(out: Path, edge: int = 3, *, overwrite: bool = False) -> Iterator[Running[DemoRecord]]:
    with resumable(command(out, "run.json", edge), overwrite=overwrite) as running:
        yield running


def test_an_output_of_its_own_is_refused_to_other_settings_until_they_may_overwrite(tmp_path: Path) -> None:
    with owned(tmp_path):
        plan_files(str(tmp_path), ["table"])
        leave(tmp_path)
    with owned(tmp_path) as running:
        assert running.resumed
    with pytest.raises(RefusedError, match="edge was 3, now 4"), owned(tmp_path, 4):
        pass
    assert left(tmp_path) == {*ALL, "plan/files.json"}
    with owned(tmp_path, 4, overwrite=True) as running:
        assert not running.resumed
    assert left(tmp_path) == ALL - {"table"}


@settings(max_examples=40, deadline=None)
@given(place=PLACES, name=st.sampled_from(["run.json", "plan/files.json"]), overwrite=st.booleans())
def test_an_output_whose_record_was_cut_is_refused_in_one_sentence(
    folder: Path, place: float, name: str, overwrite: bool
) -> None:
    out = folder / "owned"
    shutil.rmtree(out, ignore_errors=True)
    with owned(out):
        plan_files(str(out), ["table"])
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[: int(place * len(whole))])
    with pytest.raises(RefusedError) as refused, owned(out, overwrite=overwrite):
        plan_files(str(out), ["more"])
    assert f"{name}: is damaged" in str(refused.value)
    assert str(refused.value).endswith("restore it, or choose another --out")
    assert "\n" not in str(refused.value)


def test_planned_files_are_those_of_all_calls(tmp_path: Path) -> None:
    assert planned_files(str(tmp_path)) == []
    plan_files(str(tmp_path), ["b", "a"])
    plan_files(str(tmp_path), ["c", "a"])
    assert planned_files(str(tmp_path)) == ["a", "b", "c"]


def test_records_of_items_are_read_by_name_and_damaged_ones_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = ItemLedger(str(tmp_path / "ledger"), Counted)
    assert ledger.read() == {}
    names = [f"plate.ome.zarr/B/{n}" for n in range(600)] + ["a.json", "ä ö"]
    for pixels, name in enumerate(names):
        ledger.record(name, Counted(pixels=pixels))
    (tmp_path / "ledger" / "plate.ome.zarr" / "B" / "7.json").write_bytes(b'{"pixe')
    with caplog.at_level("WARNING", "chorus"):
        found = ledger.read()
    assert found == {name: Counted(pixels=pixels) for pixels, name in enumerate(names) if pixels != 7}
    assert "plate.ome.zarr/B/7 is done again" in caplog.text
    ledger.clear()
    assert ledger.read() == {}


def test_an_item_whose_result_storage_did_not_take_is_open_not_failed() -> None:
    rows = [ItemRow(name=name) for name in "abc"]
    rows[0] = rows[0].without_result(TaskResult(0, None, "no pixels"))
    rows[1] = rows[1].without_result(TaskResult(1, None, "disk is full", unwritable=True))
    assert [row.status for row in rows] == ["failed", "open", "open"]
    assert (count(rows, "open"), failures_of(rows)) == (2, {"a": "no pixels"})
    assert (state_of("complete", rows), state_of("complete", rows[1:])) == ("failures", "complete")
    assert state_of("interrupted", rows) == "interrupted"
