"""How maps are first shown, where members give classes and flows."""

from __future__ import annotations

from chorus.pipeline.core.fields import field_of
from chorus.pipeline.io.models import MapDisplay
from tests.support.engines import outputs_of


def displays_of(channels: tuple[str, ...]) -> tuple[MapDisplay, ...]:
    """Of maps with these names, of a run with at most 12 samples."""
    outputs = outputs_of(2, flows=True).sampled(12)
    fields = [field_of(channel) for channel in channels]
    return tuple(MapDisplay(*field.window(outputs)) for field in fields if field is not None)
