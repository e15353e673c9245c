"""Networks of Cellpose 1 to 3: what Cellpose 3.1 itself answers, fed as it feeds them; it need not be installed."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import add
from chorus.pipeline.ensembles.ensemble import check_answer
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.members.contract import Encoding, LoadRequest
from chorus.pipeline.members.detection import recognise
from chorus.pipeline.members.kinds.cellpose.kind import describe
from chorus.pipeline.members.kinds.cellpose.member import CellposeMember
from chorus.pipeline.members.kinds.cellpose.residual import ResidualDesign
from chorus.pipeline.members.kinds.cellpose.size import SizeModel, read_size_model
from tests.support.cellpose_networks import NARROW, residual_state
from tests.support.engines import outputs_of, settings_of

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]
# What CPnet of cellpose 3.1.1.3 answers with the weights of `residual_state()`: see benchmarks/interop/cellpose3.py.
ANSWERS = np.load(Path(__file__).with_name("cellpose3_answers.npz"))


def saved(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def entry(path: Path) -> CellposeMember:
    return CellposeMember(kind="cellpose", weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def asked(path: Path, **changes: Any) -> LoadRequest:
    outputs = outputs_of(2, "sigmoid", flows=changes.pop("flows", True))
    return LoadRequest(**{"url": str(path), "channels": 2, "outputs": outputs, "tile": 32} | changes)


def tiles(channels: int = 2, edge: int = 16) -> torch.Tensor:
    numbers = np.random.RandomState(1).rand(2, channels, edge, edge)
    return torch.from_numpy(numbers.astype(np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(residual_state(), tmp_path / "cyto3")


# what it says


def test_a_member_says_what_cellpose_3_says(path: Path) -> None:
    member = entry(path).load(asked(path), CPU)
    dy, dx, cell = ANSWERS["outputs"].transpose(1, 0, 2, 3)
    answer = member(tiles()).numpy()
    assert member.activation == "sigmoid"
    np.testing.assert_allclose(answer, np.stack([cell, dy, dx], axis=1), atol=1e-4)


def test_its_features_are_the_style_of_each_tile(path: Path) -> None:
    member = entry(path).load(asked(path), CPU)
    assert isinstance(member, Encoding)
    assert member.features == NARROW[-1]
    member(tiles())
    style = member.encoded()
    np.testing.assert_allclose(style[:, :, 0, 0], ANSWERS["style"], atol=1e-6)
    np.testing.assert_allclose(style.norm(dim=1).flatten(), 1, atol=1e-6)


def test_a_grey_image_has_zeros_in_the_place_of_nuclei(path: Path) -> None:
    grey, both = (entry(path).load(asked(path, channels=count), CPU) for count in (1, 2))
    tile = tiles(channels=1)
    assert torch.equal(grey(tile), both(torch.cat([tile, torch.zeros_like(tile)], dim=1)))


def test_without_flows_it_gives_the_cell_alone(path: Path) -> None:
    plain, full = (entry(path).load(asked(path, flows=flows), CPU) for flows in (False, True))
    assert torch.equal(plain(tiles()), full(tiles())[:, :1])


@pytest.mark.parametrize("widths", [(2, 4, 8, 16, 32), (1, 4, 8, 16)])
def test_the_file_decides_depth_and_channels(widths: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(residual_state(1, widths), tmp_path / "cells")
    member = entry(path).load(asked(path, channels=widths[0]), CPU)
    assert member(tiles(widths[0])).shape == (2, 3, 16, 16)
    assert ResidualDesign.of("", residual_state(1, widths)).multiple == 2 ** (len(widths) - 2)


def test_a_file_of_training_on_several_gpus_is_the_same_network(path: Path, tmp_path: Path) -> None:
    wrapped = saved({f"module.{name}": value for name, value in residual_state().items()}, tmp_path / "wrapped")
    members = [entry(one).load(asked(one), CPU) for one in (path, wrapped)]
    assert torch.equal(members[0](tiles()), members[1](tiles()))
    assert recognise(str(wrapped)) == "cellpose"


def test_what_it_says_does_not_depend_on_how_a_plane_is_cut(path: Path) -> None:
    members = [entry(path).load(asked(path), CPU)]
    settings = settings_of("sigmoid", False, 2, 32, ("identity", "hflip"), 4, flows=True)
    grid, whole = Grid.make((90, 70), 32, 0.5), Window.of(0, 90, 0, 70)
    pixels = np.random.default_rng(1).normal(size=(2, 90, 70)).astype(np.float32)
    plane, engine = PlaneWindow(pixels, whole, grid), Engine(members, settings, CPU)
    expected = engine.posterior(plane, whole)
    for part in (Window.of(0, 90, 0, 20), Window.of(31, 90, 20, 70)):
        found = engine.posterior(plane, part)
        inside = (slice(None), part.y.slice, part.x.slice)
        assert np.array_equal(found.flows, expected.flows[inside])
        assert np.array_equal(found.probability, expected.probability[inside])


# what it says of itself


@pytest.mark.parametrize(
    ("name", "diameters", "expected"),
    [
        ("mine", {"diam_mean": 17.0, "diam_labels": 22.5}, 17.0),
        ("cytotorch_0", {}, 30.0),
        ("nucleitorch_0", {}, 17.0),
    ],
)
def test_a_file_tells_the_diameter_that_it_was_trained_on(
    name: str, diameters: dict[str, float], expected: float, tmp_path: Path
) -> None:
    state = {key: value for key, value in residual_state().items() if not key.startswith("diam_")}
    path = saved(state | {key: torch.tensor([value]) for key, value in diameters.items()}, tmp_path / name)
    told = describe(str(path))
    assert told.entry == entry(path)
    assert (told.name, told.classes, told.activation) == (name, ["background", "cell"], "sigmoid")
    assert [entry.model_dump(exclude_none=True) for entry in told.outputs] == [
        {"role": "classes"},
        {"role": "flows", "lengths": True},
    ]
    assert (told.tile, told.diameter_px) == (224, expected)
    assert ("22.5 px before" in told.about.description) == bool(diameters)
    assert "CC-BY-NC" in told.about.limits


def test_one_command_makes_an_ensemble_of_it(path: Path, tmp_path: Path) -> None:
    made = add(str(tmp_path / "cells"), [str(path)], Wanted(channels=("cytoplasm", "nucleus"))).ensemble
    spec = made.spec
    assert (spec.members[0].kind, spec.tile, spec.activation) == ("cellpose", 224, "sigmoid")
    assert (spec.input.diameter_px, spec.input.normalisation.kind) == (30.0, "member")
    check_answer(made, 0, made.load_member(0, CPU), 224, CPU)


# what is refused


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("upsample.up.res_up_1.conv.conv_2.full.bias"), "do not fit .*Missing key"),
        (lambda state: state | {"upsample.up.more": torch.zeros(1)}, "do not fit .*Unexpected key"),
        (without("downsample.down.res_down_0.conv.conv_0.2"), "without residual blocks"),
        (
            lambda state: state | {"downsample.down.res_down_1.conv.conv_0.2.weight": torch.zeros(16, 8, 3, 3, 3)},
            "convolutions in 3D",
        ),
        (lambda _: residual_state(outputs=2), "has 2 outputs, not 3 .*restores images"),
        (lambda state: {f"x.{name}": value for name, value in state.items()}, "no network of Cellpose that Chorus"),
    ],
)
def test_files_that_are_no_whole_network_are_refused_with_a_sentence(
    change: Callable[[State], State], said: str, tmp_path: Path
) -> None:
    path = saved(change(residual_state()), tmp_path / "cells")
    with pytest.raises(RefusedError, match=said) as caught:
        entry(path).load(asked(path), CPU)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_channels_and_tiles_of_another_size_are_refused_with_the_mend(path: Path) -> None:
    with pytest.raises(RefusedError, match=r"takes 2 channels, the one to segment first .* not 3"):
        entry(path).load(asked(path, channels=3), CPU)
    with pytest.raises(RefusedError, match="tiles of a multiple of 2, not 33; set `tile: 224`"):
        entry(path).load(asked(path, tile=33), CPU)


# its size model


def size_content(**changes: Any) -> dict[str, Any]:
    rng = np.random.RandomState(3)
    slope, mean = (rng.randn(NARROW[-1]).astype(np.float32) for _ in range(2))
    return {"A": slope, "smean": mean, "ymean": np.float64(0.3), "diam_mean": 30.0} | changes


def size_file(content: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object))
    return file.getvalue()


def test_a_size_model_says_what_cellpose_says_of_a_style() -> None:
    content, style = size_content(), np.random.RandomState(4).randn(NARROW[-1])
    expected = np.exp(content["A"] @ (style - content["smean"]) + np.log(30.0) + content["ymean"])
    model = read_size_model("size.npy", size_file(content))
    assert model.diameter(style) == pytest.approx(expected, rel=1e-6)
    assert model.diameter(-1000 * content["A"]) == 5.0  # Cellpose's least


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_size_model_of_any_pickle_is_read(protocol: int) -> None:
    header = size_file(None)[:128]
    pickled = pickle.dumps(np.array(size_content(), dtype=object), protocol=min(protocol, 4))
    model = read_size_model("size.npy", header + pickled)
    np.testing.assert_array_equal(model.slope, size_content()["A"])


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("pickled code ran",))


@pytest.mark.parametrize(
    "data",
    [
        size_file(size_content(A=Trap())),
        size_file(Trap()),
        size_file(size_content(A="text")),
        size_file(size_content(A=np.zeros(3))),
        size_file(size_content(ymean=float("nan"))),
        size_file(size_content(diam_mean=0.0)),
        size_file({"A": np.zeros(16)}),
        size_file([1, 2]),
        size_file(size_content())[:-20],
        b"no file of NumPy",
        b"",
    ],
)
def test_what_is_no_size_model_is_refused_and_no_code_runs(data: bytes) -> None:
    with pytest.raises(RefusedError, match=r"^size\.npy: no size model of Cellpose.*never runs pickled code"):
        read_size_model("size.npy", data)


@pytest.mark.parametrize("name", ["size_cyto3.npy", "cyto3_size.npy"])
def test_a_size_model_beside_the_weights_goes_with_them_into_an_ensemble(name: str, path: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(size_file(size_content()))
    made = add(str(tmp_path / "cells"), [str(path)], Wanted(channels=("cytoplasm",))).ensemble
    regression = made.spec.members[0].size_regression(made.asked(0))
    assert isinstance(regression, SizeModel)
    np.testing.assert_array_equal(regression.slope, size_content()["A"])
    (tmp_path / "cells" / "cyto3_size.npy").write_bytes(size_file(size_content(diam_mean=17.0)))
    with pytest.raises(RefusedError, match=r"cyto3_size\.npy: sha256 is"):
        made.spec.members[0].size_regression(made.asked(0))


def test_without_a_size_model_there_is_none(path: Path) -> None:
    member = describe(str(path)).entry
    assert member.size_regression(asked(path)) is None
    assert "size_sha256" not in member.model_dump()  # so that ensembles keep the hash that they had
