"""The JSON schema of ``ensemble.yaml``, for editors and for programs in other languages."""

from __future__ import annotations

from typing import Any

from chorus.pipeline.ensembles.spec import FORMAT, EnsembleSpec


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the present format."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{FORMAT.replace('/', ':')}",
        **EnsembleSpec.model_json_schema(),
        "title": "Chorus ensemble",
        "description": "The members of a deep ensemble, how to feed them, and what is known of them (ensemble.yaml).",
    }
