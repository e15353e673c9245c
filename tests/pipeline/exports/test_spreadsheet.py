"""Names that look like formulas are text in every CSV."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.exports.spreadsheet import csv_bytes, harmless, original
from chorus.pipeline.exports.tables import write_table

FORMULAS = [
    '=HYPERLINK("http://x")',
    "+1+cmd|' /C calc'!A0",
    *("-2+3", "@SUM(1)", "\t=1+1", "\n=1", "  =1", "＝1", "a;=1", "a,=1", "'=1", "x\t@y"),
]


@pytest.mark.parametrize("text", [*FORMULAS, "\r=1"])
def test_a_formula_is_text_and_reads_back_as_it_was(text: str) -> None:
    assert harmless(text) != text
    assert not harmless(text).lstrip().startswith(tuple("=+-@＝"))
    assert original(harmless(text)) == text


@pytest.mark.parametrize("text", ["nuclei.ome.zarr", "a-b", "-1.5", "1; -2.5; +3e-4", "", "p@x", "c=1", "1e-3"])
def test_plain_names_and_numbers_stay(text: str) -> None:
    assert harmless(text) == text


@given(st.text(alphabet="=+-@'; ,\t\r\nab1.＝", max_size=12))
def test_any_text_reads_back_as_it_was(text: str) -> None:
    assert original(harmless(text)) == text


@given(st.sampled_from("=@"), st.text(max_size=12))
def test_no_text_begins_like_a_formula(sign: str, after: str) -> None:
    assert harmless(sign + after).startswith(f"'{sign}")


def test_tables_and_their_headers_have_no_formulas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": FORMULAS, "=dice": range(len(FORMULAS)), "kind": pd.Categorical(FORMULAS)})
    write_table(frame, str(tmp_path / "t.csv"))
    for data in ((tmp_path / "t.csv").read_bytes(), csv_bytes(frame)):
        read = pd.read_csv(io.BytesIO(data))
        assert list(read.columns) == ["name", "'=dice", "kind"]
        assert read["'=dice"].tolist() == list(range(len(FORMULAS)))
        for column in ("name", "kind"):
            assert read[column].map(original).tolist() == FORMULAS
            assert not any(text.lstrip().startswith(("=", "+", "-", "@")) for text in read[column])
    write_table(frame.astype({"kind": str}), str(tmp_path / "t.parquet"))
    assert pd.read_parquet(tmp_path / "t.parquet")["name"].tolist() == FORMULAS  # only CSV is opened by spreadsheets
