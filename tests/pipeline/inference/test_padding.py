"""What tiles see beyond the image's edges: mirrored pixels, or zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.core.geometry import Padding, Span, Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.tile_stream import PlaneWindow, TileSource
from tests.support.making import write_ensemble

MODES: dict[Padding, Any] = {"mirror": "reflect", "zero": "constant"}


@st.composite
def targets(draw: st.DrawFn) -> tuple[tuple[int, ...], int, Window]:
    """A shape of two or three axes, the edge of a tile, and a window of the image."""
    shape = tuple(draw(st.lists(st.integers(2, 20), min_size=2, max_size=3)))
    starts = [draw(st.integers(0, length - 1)) for length in shape]
    stops = [draw(st.integers(start + 1, length)) for start, length in zip(starts, shape, strict=True)]
    spans = [Span(start, stop) for start, stop in zip(starts, stops, strict=True)]
    return shape, draw(st.integers(2, 12)), Window(*spans)


@settings(max_examples=150)
@given(targets(), st.sampled_from(list(MODES)), st.sampled_from([0.0, 0.5]))
def test_tiles_are_those_of_the_padded_image_for_any_target(
    drawn: tuple[tuple[int, ...], int, Window], padding: Padding, overlap: float
) -> None:
    shape, edge, target = drawn
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32) + 5
    grid = Grid.make(shape, edge, overlap)
    needed = grid.needed(target)
    pixels = image[(slice(None), *(span.slice for span in needed.spans))]
    source = TileSource(PlaneWindow(pixels, needed, grid, padding), target, None, torch.device("cpu"))  # type: ignore[arg-type]
    whole = np.pad(image, [(0, 0)] + [(edge, edge)] * len(shape), mode=MODES[padding])
    for tile in grid.tiles(target):
        inside = tuple(slice(span.start + edge, span.stop + edge) for span in tile.window.spans)
        np.testing.assert_array_equal(source.cut(tile).numpy(), whole[(slice(None), *inside)])


def test_an_ensemble_that_mirrors_keeps_its_hash_and_one_that_does_not_has_another(tmp_path: Path) -> None:
    url = write_ensemble(tmp_path, members=1, tile=64)
    hashes = []
    for change in ({}, {"padding": "mirror"}, {"padding": "zero"}):
        file = tmp_path / "ensemble.yaml"
        content = yaml.safe_load(file.read_text())
        content["input"] |= change
        file.write_text(yaml.safe_dump(content))
        hashes.append(read_ensemble(str(url)).hash)
    assert hashes[0] == hashes[1]
    assert hashes[1] != hashes[2]


@pytest.mark.parametrize("padding", ["mirror", "zero"])
def test_the_members_input_says_how_it_is_padded(padding: Padding, tmp_path: Path) -> None:
    url = write_ensemble(tmp_path, members=1, tile=64)
    file = tmp_path / "ensemble.yaml"
    content = yaml.safe_load(file.read_text())
    content["input"]["padding"] = padding
    file.write_text(yaml.safe_dump(content))
    assert read_ensemble(str(url)).all_inputs.padding == padding
