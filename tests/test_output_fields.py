"""Every output field through every consumer: one that a consumer lacks, or shows on another scale, fails here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import zarr
from PIL import Image

from chorus.cluster.objects.job import uncertainties_of
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.regions.maps import saved_maps
from chorus.cluster.runs.volume_merging import seen_by
from chorus.console.options import RequestOptions
from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import (
    CHOICES,
    CLASS_VARIANCES,
    DEFAULTS,
    FIELDS,
    FLOW,
    FLOW_VARIANCE,
    OF_OBJECTS,
    SAMPLES,
    FieldLayout,
    field_of,
)
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    DISTANCE,
    EFFORT,
    FLOWS,
    VALUES,
    Output,
    Outputs,
    classes_of,
    flows_of,
    rays_of,
)
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.exports.annotation import Drafted, draft
from chorus.pipeline.exports.contours import polygons
from chorus.pipeline.exports.outlines import LabelledImage, ObjectTable, Outline, object_name, uncertainty_column
from chorus.pipeline.exports.rois import roi
from chorus.pipeline.exports.tables import write_by_uncertainty
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.io.models import ClassInfo, ImageLayout, MapDisplay
from chorus.pipeline.io.outputs.writer import open_posterior, prepare_image, write_region
from chorus.pipeline.report.pictures import paint_panels
from chorus.pipeline.report.rows import read_images
from chorus.pipeline.scores.registry import IMAGE_TABLE
from chorus.serving.contract.schemas import Prediction, PredictOptions
from chorus.serving.prediction.encoding import arrays
from chorus.serving.prediction.steps import Result
from chorus.serving.review.pixels import Pixels, open_layers
from chorus.serving.review.tiles import Look, draw_tile, scale
from tests.support.engines import CPU, outputs_of
from tests.support.reports import score, write_source, write_tables

ROOT = Path(__file__).parents[1]
CLASSES = (ClassInfo("background", "#000000"), ClassInfo("nucleus", "#4daf4a"), ClassInfo("dead", "#e41a1c"))
MEMBERS_AND_WAYS = 12
ANSWERED = Outputs(
    (
        classes_of([info.name for info in CLASSES]),
        flows_of(),
        rays_of(8, (0, 40)),
        Output(DISTANCE, ("centre", "boundary"), extent=(-1, 2), unit="px"),
        Output(BOUNDARY, ("boundary",)),
        Output(AFFINITIES, ("-1,0", "0,-1"), vectors=((-1.0, 0.0), (0.0, -1.0))),
        Output(VALUES, ("actin", "myosin"), extent=(100, 400)),
    )
)
OUTPUTS = ANSWERED.sampled(MEMBERS_AND_WAYS)
SHAPE = (70, 90)
SCORE_FIELDS = {score.name for score in IMAGE_TABLE}
_EXTENTS = ("-6 to 6", "declared range", "0 to members x augmentations")
EVERY = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)


def layout_at(url: Path, names: list[str]) -> ImageLayout:
    return ImageLayout(
        url=str(url), labels_url=str(url), labels_ngff="0.5", source_url="", axes="yx", shape=SHAPE,
        scale=(1.0, 1.0), translation=(0.0, 0.0), units=(None, None), dtype="float32", classes=CLASSES,
        channels=tuple(name for field in names for name in FIELDS[field].channels(OUTPUTS)),
        chunk=64, region=128,
        displays=tuple(
            MapDisplay(*FIELDS[field].window(OUTPUTS), FIELDS[field].unit(OUTPUTS))
            for field in names
            for _ in FIELDS[field].channels(OUTPUTS)
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    """Values all over the range of each field, as an adaptive run of an ensemble with flows could give them."""
    rng, fields = np.random.default_rng(0), {}
    for name in FieldLayout.blended(OUTPUTS).slices:
        field = FIELDS[name]
        low, high = field.window(OUTPUTS)
        fields[name] = rng.uniform(low, high, (len(field.channels(OUTPUTS)), *SHAPE)).astype(np.float32)
    fields["epistemic"], fields["aleatoric"] = fields["epistemic"] / 2, fields["aleatoric"] / 2
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    return Posterior(fields=fields, labels=labels, masks=labels, member_masks=labels[None])


def write(out: Path, posterior: Posterior, names: list[str]) -> ImageLayout:
    layout = layout_at(out, names)
    prepare_image(layout)
    maps = saved_maps(posterior, names, "float32")
    write_region(layout, 0, 0, Window.of(0, SHAPE[0], 0, SHAPE[1]), maps, posterior.labels)
    return layout


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, posterior: Posterior) -> ImageLayout:
    """Results that hold every field."""
    return write(tmp_path_factory.mktemp("results") / "image.ome.zarr", posterior, list(FIELDS))


def omero(layout: ImageLayout) -> dict[str, dict[str, Any]]:
    attributes: Any = zarr.open_group(layout.url, mode="r").attrs["ome"]
    return {channel["label"]: channel for channel in attributes["omero"]["channels"]}


@EVERY
def test_settings_keep_it_and_the_command_line_names_it(field: Field) -> None:
    assert ResultSettings(save=[field.name]).save == [field.name]
    options = {one.name: one for one in RequestOptions.__dataclass_fields__.values()}
    assert options["save"].default == ",".join(DEFAULTS) == ",".join(ResultSettings().save)
    assert field.name in CHOICES or field.role is EFFORT


def test_what_samples_give_are_the_fields_that_are_blended_at_the_places_of_the_layout() -> None:
    for outputs in (outputs_of(3), outputs_of(3, flows=True), ANSWERED):
        sums = SampleSums.zeros(outputs, 2, (4, 4), CPU)
        sums.samples = 1
        settings = InferenceSettings(outputs, False, 4, ("identity",), 2)
        given = {field.name: maps.shape[1] for field, maps in sums.statistics().items()}
        assert given == {name: part.stop - part.start for name, part in settings.layout.slices.items()}
        for field, maps in sums.statistics().items():
            assert sums.maps()[:, settings.layout[field]].equal(maps)
    blended = set(FieldLayout.blended(OUTPUTS).slices)
    assert blended == {field.name for field in FIELDS.values() if not field.parts} == given.keys() | {SAMPLES.name}


@EVERY
def test_it_is_written_and_read_back(field: Field, written: ImageLayout, posterior: Posterior) -> None:
    stored = np.asarray(open_posterior(written.url)[:])[field.among(written.channels)]
    assert stored.tobytes() == posterior.maps(field).tobytes()
    assert len(stored) == len(field.channels(OUTPUTS)) > 0


@EVERY
def test_viewers_get_its_range_and_a_colour_of_its_own(field: Field, written: ImageLayout) -> None:
    known = omero(written)
    colors = [channel["color"].upper() for channel in known.values()]
    for name, values in zip(written.channels, np.asarray(open_posterior(written.url)[:]), strict=True):
        window = known[name]["window"]
        if field_of(name) is field:
            assert window["start"] == window["min"] <= values.min() < values.max() <= window["max"] == window["end"]
            assert np.ptp(values) > 0.4 * (window["max"] - window["min"]), "the range is not too wide, too"
            assert colors.count(known[name]["color"].upper()) == 1
            assert known[name]["color"].upper() != "FFFFFF"


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        (list(FIELDS), {"probability:nucleus", "probability:dead"}),
        (list(DEFAULTS), {"probability:nucleus", "probability:dead"}),
        (["uncertainty", "epistemic"], {"uncertainty"}),
        (["flow_variance", "flows"], {"flow_variance"}),
        (["flows"], {"flow:y", "flow:x"}),
        (["samples"], {"samples"}),
    ],
)
def test_viewers_show_one_field_at_first(
    kept: list[str], shown: set[str], tmp_path: Path, posterior: Posterior
) -> None:
    channels = omero(write(tmp_path / "image.ome.zarr", posterior, kept))
    assert {name for name, channel in channels.items() if channel["active"]} == shown


@EVERY
def test_a_server_can_be_asked_for_it(field: Field, written: ImageLayout, posterior: Posterior) -> None:
    assert PredictOptions(outputs=[field.name]).outputs == [field.name]
    schema = PredictOptions.model_json_schema()["properties"]["outputs"]["items"]
    assert field.name in schema["enum"]
    maps = saved_maps(posterior, list(FIELDS))
    assert maps is not None
    result = Result(Prediction.model_construct(), maps, posterior.labels, {}, written)
    expected = posterior.maps(field)
    assert np.array_equal(arrays(result, [field.name])[field.name], expected if field.per_channel else expected[0])


@EVERY
def test_the_review_page_has_a_layer_of_it_over_its_range(
    field: Field, written: ImageLayout, posterior: Posterior, tmp_path: Path
) -> None:
    write_source(tmp_path / "source", np.zeros(SHAPE, np.uint16), "yx")
    opened = open_layers(str(tmp_path / "source"), written.url, written.labels_url)
    own = [layer for layer in opened.layers.values() if layer.field is field]
    assert [layer.name for layer in own] == list(field.channels(OUTPUTS))
    assert len({field.channel_label(layer.name) for layer in own}) == len(own)
    values = posterior.maps(field)
    for layer in own:
        low, high, colors = scale(layer)
        assert low <= values.min() < values.max() <= high
        assert len(colors) > 2
        assert layer.display.unit == field.unit(OUTPUTS)
        tile = draw_tile(Pixels(), layer, layer.steps[0], (0, 0, 0, 0), Look(), [], "png")
        (tmp_path / "tile.png").write_bytes(tile)
        picture = np.asarray(Image.open(tmp_path / "tile.png").convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, "most values have a colour of their own"


def test_a_channel_of_no_field_is_left_out_with_a_note(tmp_path: Path, posterior: Posterior) -> None:
    layout = write(tmp_path / "image.ome.zarr", posterior, ["uncertainty"])
    document = Path(layout.url) / "zarr.json"
    document.write_text(document.read_text().replace('"uncertainty"', '"doubtfulness"'))
    opened = open_layers(layout.url + "-none", layout.url, layout.labels_url)
    assert [layer.kind for layer in opened.layers.values()] == ["labels"]
    assert "its channel 'doubtfulness' is of no field that this version knows" in " ".join(opened.notes)


def test_pages_name_no_field_themselves() -> None:
    pages = [*(ROOT / "serving/review/static/js").glob("*.js"), *(ROOT / "pipeline/report").glob("*.js")]
    assert len(pages) > 5
    words = {"samples", "values", "boundary"}
    maps = [re.escape(name) for name in FIELDS if name not in SCORE_FIELDS | words]
    for page in pages:
        assert not re.search(rf"[\"'`](map-)?({'|'.join(maps)}|flow)[:\"'`]", page.read_text()), page.name


@EVERY
def test_the_report_lists_its_mean_over_an_image(field: Field, tmp_path: Path) -> None:
    if field.name not in SCORE_FIELDS:
        means = field.statistic.endswith("variance") and not field.per_channel and field.letter
        assert not means, "variances have a mean over the foreground"
        return
    rows = [score(tmp_path, "a", 0.1), score(tmp_path, "b", 0.2)]
    write_tables(tmp_path, rows)
    pd.read_parquet(tmp_path / "scores.parquet").assign(**{field.name: [0.1, 0.2]}).to_parquet(
        tmp_path / "scores.parquet"
    )
    assert field.name in [quantity.key for quantity in read_images(str(tmp_path), []).quantities]


@pytest.mark.parametrize("field", CLASS_VARIANCES, ids=lambda field: field.name)
def test_the_report_draws_it_and_annotation_packages_choose_by_it(
    field: Field, tmp_path: Path, posterior: Posterior
) -> None:
    write_source(tmp_path / "source", np.zeros(SHAPE, np.uint16), "yx")
    layout = write(tmp_path / "image.ome.zarr", posterior, [field.name, "flow_variance"])
    painted = paint_panels(str(tmp_path / "source"), layout.url, layout.url, CLASSES, 0, 64)
    assert painted.uncertainty_name == field.name
    image = Drafted(
        "image", str(tmp_path / "source"), "s0", "yx", (0,), ("dna",), layout.url, layout.url, "semantic", "yx",
        (1, 1), *SHAPE, None,
    )  # fmt: skip
    place = draft(image, 32, str(tmp_path / "a.tif"), str(tmp_path / "b.tif"))
    assert place.window.shape == (32, 32)


@pytest.mark.parametrize("field", OF_OBJECTS, ids=lambda field: field.name)
def test_objects_have_its_mean_in_tables_and_exports(field: Field, tmp_path: Path) -> None:
    assert uncertainties_of([field.name], second_flows=False) == (field.name,)
    assert uncertainty_column(["area", field.name]) == field.name
    assert object_name(1, 9, field.name, 0.25, 17) == f"0001_{field.letter}0.250_label17"
    assert len({one.letter for one in OF_OBJECTS}) == len(OF_OBJECTS)
    row = {"image": "image", "class": "cell", "label": 17, "area": 4, "t": 0, "z": 0, field.name: 0.25}
    table = pa.Table.from_pylist([row])
    write_by_uncertainty(
        ObjectTable("", 0, 1, table), table.schema, np.array([1]), field.name, str(tmp_path / "by_uncertainty.csv")
    )
    assert pd.read_csv(tmp_path / "by_uncertainty.csv")[field.name].tolist() == [0.25]
    image = LabelledImage("image", "", "yx", (1, 1), 1, CLASSES)
    drawn = roi(image, Outline(1, "name", row, polygons(np.ones((2, 2), bool), 0, 0), (0, 0, 0)))
    assert drawn.properties[field.name] == 0.25


def test_components_of_vectors_are_of_the_views_that_see_them_and_all_else_is_of_each() -> None:
    assert seen_by("flow:z") == [("zx", "flow:y"), ("zy", "flow:y")]
    assert seen_by("flow:y") == [("yx", "flow:y"), ("zy", "flow:x")]
    assert seen_by("flow:x") == [("yx", "flow:x"), ("zx", "flow:x")]
    volume = outputs_of(2, flows=True).along("zyx")
    for field in FIELDS.values():
        for channel in field.channels(volume) if field.given(volume) and field is not FLOW else ():
            assert seen_by(channel) == [(view, channel) for view in ("yx", "zx", "zy")]
    assert FLOW_VARIANCE.role is FLOWS
    assert (FLOW_VARIANCE.symmetry, FLOW.symmetry) == ("scalar", "vector")


@EVERY
def test_the_docs_have_it(field: Field) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs/fields.md").read_text(), re.M))
    assert list(rows) == list(FIELDS)
    channels, statistic, shown, _ = rows[field.name].split(" | ")
    assert channels.startswith(f"`{field.channel('<')}")
    assert statistic == field.statistic
    ends = f"{field.display.low:g} to {field.display.high:g}"
    assert shown in {"fixed": [ends], "extent": _EXTENTS, "variance": ["0 to range squared / 4"]}[field.display.scale]
    assert f"`{field.name}`" in (ROOT / "docs/serving.md").read_text()
