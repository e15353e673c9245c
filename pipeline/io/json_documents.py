"""JSON files as typed documents: one sentence where a file is cut, empty, garbage, or does not hold what it should."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from chorus.pipeline.errors import ChorusError, DamagedError, reason_of

Kind = TypeVar("Kind", bound=BaseModel)


def parsed(data: bytes, kind: type[Kind], url: str, mend: str, error: type[ChorusError] = DamagedError) -> Kind:
    """Return the document that a file holds.

    Parameters
    ----------
    data : content of the file
    url : of the file, for the sentence
    mend : what to do where it is damaged, for the sentence
    error : raised then

    Raises
    ------
    ChorusError
        Of type `error`, in one sentence that names the file, the field and the mend.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as invalid:
        raise error(f"{url}: is damaged ({fault(data, invalid)}); {mend}") from invalid


def fault(data: bytes, invalid: ValidationError) -> str:
    """Return, as a part of a sentence, what is wrong with a file that is not a valid document."""
    if not data.strip():
        return "it is empty"
    first = invalid.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = reason_of(first["msg"].removeprefix("Invalid JSON: "))
    return f"field {where}: {message}" if where else message
