"""The OpenAPI documentation of routes whose bodies FastAPI does not parse itself."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from chorus.serving.contract.problems import MEDIA, TITLES, Problem
from chorus.serving.contract.schemas import JSON, NPZ, TIFF, ZIP, JobState, Prediction, PredictOptions, PredictRequest

TAGS = [
    {"name": "predict", "description": "One image, now"},
    {"name": "jobs", "description": "Large images, and runs over many"},
    {"name": "ensembles", "description": "What answers"},
    {"name": "server", "description": "Whether it is well"},
]


def problem(status: int) -> dict[str, Any]:
    """Return the documentation of an error response, `problem+json`."""
    content = {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = {"Retry-After": {"schema": {"type": "integer"}}} if status in (429, 503) else {}
    return {"description": TITLES[status], "content": content, "headers": headers}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: problem(401), 403: problem(403), 429: problem(429) | {"model": Problem}, 500: problem(500), 503: problem(503),
}  # fmt: skip

_BYTES = {"type": "string", "format": "binary"}
_EXAMPLE = {"source": {"url": "https://example.org/public/plate.ome.zarr", "image": "B/3/0"}, "options": {"z": 2}}


def _fields() -> dict[str, JsonValue]:
    """Return the options one by one, as fields of a form."""
    return dict(PredictOptions.model_json_schema()["properties"])


def _parameters() -> list[dict[str, JsonValue]]:
    """Return the options as query parameters, for a body that is the image, and the headers."""
    parameters: list[dict[str, JsonValue]] = [
        {"name": name, "in": "query", "required": False, "schema": schema, "explode": True}
        for name, schema in _fields().items()
    ]
    header: dict[str, JsonValue] = {"name": "X-Deadline-Seconds", "in": "header", "required": False}
    return [*parameters, header | {"schema": {"type": "number", "exclusiveMinimum": 0}, "description": "504 after it"}]


PREDICT: dict[str, Any] = {
    "openapi_extra": {
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"image": _BYTES} | _fields(),
                        "required": ["image"],
                        "additionalProperties": False,
                    }
                },
                "image/tiff": {"schema": _BYTES},
                "image/png": {"schema": _BYTES},
                "image/jpeg": {"schema": _BYTES},
                "application/x-npy": {"schema": _BYTES},
                JSON: {"schema": PredictRequest.model_json_schema(ref_template="#/components/schemas/{model}"),
                       "example": _EXAMPLE},
            },
        },
    },
    "responses": {
        200: {
            "description": "Scores, and in other forms than JSON what was asked for",
            "model": Prediction,
            "content": {NPZ: {"schema": _BYTES}, TIFF: {"schema": _BYTES}, ZIP: {"schema": _BYTES}},
        },
        202: {"description": "Too large to be answered at once: a job", "model": JobState},
        **{status: problem(status) for status in (400, 404, 406, 408, 413, 415, 422, 504)},
    },
}  # fmt: skip
