"""TorchScript archives, opened so that a stranger's file can compute and do nothing else.

A TorchScript file is a program. Loading it runs what its ``__setstate__`` methods say, calling it whatever its graph
holds, and among torch's operators are ones that write files. So three things are looked at where a file is not trusted:

1. Before anything is loaded, the source and the pickles in the archive, through the reader that `torch.jit.load` uses:
   nothing may run while it loads, and no operator may be named but those of `chorus.pipeline.members.safety.operators`.
2. A process with limits loads it and shows it a tile first (`chorus.pipeline.members.safety.trial`).
3. Once it is loaded and before it is called, the graphs of all of its functions, as torch's own compiler sees them.

References
----------
torch: ``torch/csrc/jit/docs/serialization.md``, ``torch/csrc/jit/serialization/import.cpp``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch.jit._recursive import wrap_cpp_module

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.safety.operators import allowed

_ZIP = b"PK\x03\x04"
_OPERATOR = re.compile(r"(?<![\w.])(?:torch|ops\s*\.\s*(\w+))\s*\.\s*(\w+)")
# Classes that torch or a library registered in C++; some of them are made by code of their own while a pickle is read.
_CUSTOM_CLASS = re.compile(r"torch[.\s]+classes\b")
_ENDLESS = 1 << 62
"""Rounds of a loop that has no bound: `while` is one of the largest integer."""


def is_script(data: bytes) -> bool:
    """Return whether a file is a TorchScript archive; nothing of it is loaded."""
    reader = _reader(data)
    return reader is not None and {"data.pkl", "constants.pkl"} <= set(reader.get_all_records())


def check_source(url: str, data: bytes) -> None:
    """Raise RefusedError where loading would run something, or the source names an operator that is not allowed."""
    reader = _reader(data)
    if reader is None:
        raise _not_script(url)
    records = set(reader.get_all_records())
    if "model.json" in records or not {"data.pkl", "constants.pkl"} <= records:
        raise _not_script(url)
    for name in sorted(records):
        if name.endswith((".py", ".pkl")):
            text = reader.get_record(name).decode("latin-1")
            if _CUSTOM_CLASS.search(text):
                raise _untrusted(url, "has objects of classes in C++ (torch.classes)")
            if name.endswith(".py"):
                _check_text(url, text)


def load_script(url: str, data: bytes, device: torch.device, *, trust_code: bool = False) -> torch.jit.ScriptModule:
    """Load the module of a TorchScript file; if it is not trusted, only one that only computes.

    Raises
    ------
    RefusedError
        If it is no TorchScript file, or needs ``--trust-code``.
    """
    if not trust_code:
        check_source(url, data)
    elif _reader(data) is None:
        raise _not_script(url)
    unit = torch._C.CompilationUnit()
    try:
        loaded = torch._C.import_ir_module_from_buffer(unit, data, torch.device(device), {}, False)  # type: ignore[call-arg, arg-type]
        if not trust_code:
            _check_graphs(url, unit)
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise _not_script(url) from error
    module: torch.jit.ScriptModule = wrap_cpp_module(loaded)
    return module


def _reader(data: bytes) -> Any:
    """Open a file as `torch.jit.load` reads it; None if it is no archive (a flatbuffer starts with other bytes)."""
    if not data.startswith(_ZIP):
        return None
    try:
        return torch._C.PyTorchFileReader(io.BytesIO(data))
    except RuntimeError:
        return None


def _check_text(url: str, text: str) -> None:
    if "__setstate__" in text:
        raise _untrusted(url, "runs code of its own while it is loaded (__setstate__)")
    for match in _OPERATOR.finditer(text):
        namespace, name = match[1] or "aten", match[2]
        operator = f"{namespace}::{name}"
        # Other names are no operators, and have no effect by themselves.
        if (match[1] or operator in _registered()) and not allowed(operator):
            raise _untrusted(url, f"calls {operator}")


@cache
def _registered() -> frozenset[str]:
    return frozenset(schema.name for schema in torch._C._jit_get_all_schemas())


def _check_graphs(url: str, unit: Any) -> None:
    for function in unit.get_functions():
        _check_nodes(url, function.graph.nodes())


def _check_nodes(url: str, nodes: Iterable[Any]) -> None:
    for node in nodes:
        kind = node.kind()
        if not allowed(kind):
            raise _untrusted(url, f"calls {kind}")
        if kind == "prim::Loop":
            rounds = next(iter(node.inputs())).toIValue()
            if isinstance(rounds, int) and rounds >= _ENDLESS:
                raise _untrusted(url, "has a loop without a bound (`while`)")
        for block in node.blocks():
            _check_nodes(url, block.nodes())


def _not_script(url: str) -> RefusedError:
    return RefusedError(
        f"{url}: is no TorchScript file; export it with `torch.jit.save`, or name its architecture with `kind: smp`"
    )


def _untrusted(url: str, what: str) -> RefusedError:
    return RefusedError(
        f"{url}: {what}, which a network does not need; run with --trust-code if you trust its author, or export it as "
        f"ONNX"
    )
