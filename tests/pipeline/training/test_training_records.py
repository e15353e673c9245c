"""Records of a fold that were cut: a sentence for the result, and a log without the damaged lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.training.records import FoldResult, Step, fold_folder, read_log, read_result

RESULT = FoldResult(
    fold=0,
    identity="abc",
    begun_with="random",
    learning_rate=0.001,
    steps=4,
    best_step=2,
    weights="member-0.safetensors",
    sha256="0" * 64,
    weights_dtype="float32",
    train=["a"],
    validation=["b"],
    dice={"nucleus": 0.5},
    seconds=1.5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    Path(fold_folder(str(folder), 0)).mkdir(parents=True)
    return folder


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_result_that_was_cut_anywhere_is_refused_in_one_sentence(folder: Path, data: st.DataObject) -> None:
    whole = RESULT.model_dump_json().encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    (folder / "folds" / "0" / "result.json").write_bytes(cut)
    with pytest.raises(RefusedError, match=r"result\.json: is damaged \(.*\); restore it, or remove it") as refused:
        read_result(str(folder), 0)
    assert "\n" not in str(refused.value)
    (folder / "folds" / "0" / "result.json").write_bytes(whole)
    assert read_result(str(folder), 0) == RESULT


def test_a_log_keeps_its_other_lines(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = [Step(fold=0, step=n, steps=4, loss=1 / n, learning_rate=0.001, images_per_second=2.0) for n in (1, 2, 3)]
    lines = [step.model_dump_json().encode() for step in steps]
    (folder / "folds" / "0" / "log.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:20], lines[2], b"\xff\xfe"]))
    with caplog.at_level("WARNING", "chorus"):
        assert read_log(str(folder), 0) == [steps[0], steps[2]]
    assert [record.getMessage().partition("log.jsonl: ")[2][:7] for record in caplog.records] == ["line 2:", "line 4:"]
