"""Text in CSV files: names that a spreadsheet would take for formulas are made harmless, and read back as they were.

References
----------
OWASP, "CSV Injection": a cell that begins with ``=``, ``+``, ``-`` or ``@`` is carried out when the file is opened,
also behind a separator that a spreadsheet of another language knows. An apostrophe before it makes it text.
"""

from __future__ import annotations

import re

import pandas as pd
import pyarrow as pa

_SIGNS = "=+\\-@＝＋－＠"
_NUMBER = r"[+-]?[\d.]+(?:[eE][+-]?\d+)?\s*(?:;|$)"
_FORMULA = re.compile(rf"(^|[;,\t\r\n])(\s*)(?!{_NUMBER})('*[{_SIGNS}])")
_HARMLESS = re.compile(rf"(^|[;,\t\r\n])(\s*)'('*[{_SIGNS}])")


def harmless(text: str) -> str:
    """Put an apostrophe before whatever in a text begins like a formula; numbers stay."""
    return _FORMULA.sub(r"\1\2'\3", text)


def original(text: str) -> str:
    """Undo `harmless`."""
    return _HARMLESS.sub(r"\1\2\3", text)


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """Write a table as CSV, its texts and its header made harmless."""
    safe = frame.rename(columns=lambda name: harmless(str(name)))
    for position, dtype in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            column = safe.iloc[:, position].map(lambda value: harmless(value) if isinstance(value, str) else value)
            safe.isetitem(position, column.to_numpy(dtype=object))
    data: bytes = safe.to_csv(index=False).encode()
    return data


def harmless_table(table: pa.Table) -> pa.Table:
    """Return a table whose texts and header are harmless in CSV."""
    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = [None if value is None else harmless(value) for value in column.to_pylist()]
            column = pa.chunked_array([pa.array(values, column.type)])
        columns.append(column)
    return pa.table(columns, schema=harmless_schema(table.schema))


def harmless_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of `harmless_table`."""
    fields = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        fields.append(pa.field(harmless(field.name), kind))
    return pa.schema(fields)
