"""Networks of Cellpose as members: what the library's own network says, fed as the library feeds it."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.engine import Engine, PlaneWindow
from chorus.pipeline.members.contract import LoadRequest
from chorus.pipeline.members.kinds.cellpose.kind import describe
from chorus.pipeline.members.kinds.cellpose.member import CellposeInput, CellposeMember
from chorus.pipeline.preprocessing.preparation import surveyed
from tests.support.engines import outputs_of, settings_of

core = pytest.importorskip("cellpose.core")
transforms = pytest.importorskip("cellpose.transforms")
vit = pytest.importorskip("cellpose.vit")

CPU = torch.device("cpu")
TILE = 256
WHOLE = Window.of(0, TILE, 0, TILE)
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def small_backbone() -> Iterator[None]:
    """A SAM encoder of two narrow blocks in place of ViT-L's 24, for the member and for the library alike."""
    from segment_anything import sam_model_registry
    from segment_anything.build_sam import _build_sam

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam_model_registry, "vit_l", partial(_build_sam, 64, 2, 2, [1]))
        yield


def cellpose_network(seed: int, outputs: int = 3) -> Any:
    """Cellpose's own network with random weights; it tells places apart, as a trained one does."""
    torch.manual_seed(seed)
    network = vit.CPSAM(nout=outputs)
    with torch.no_grad():
        network.encoder.pos_embed.normal_(std=0.2)
        network.out.weight.mul_(3)
    return network.eval()


def saved(network: Any, path: Path) -> Path:
    network.save_model(str(path))
    return path


def entry(path: Path) -> CellposeMember:
    return CellposeMember(kind="cellpose", weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def asked(path: Path, **changes: Any) -> LoadRequest:
    outputs = outputs_of(2, "sigmoid", flows=changes.pop("flows", True))
    return LoadRequest(**{"url": str(path), "channels": 3, "outputs": outputs, "tile": TILE} | changes)


def tiles(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.rand((1, channels, TILE, TILE), generator=torch.Generator().manual_seed(seed))


def cellpose_ensemble(folder: Path, weights: list[Path], **changes: Any) -> Ensemble:
    content: dict[str, Any] = {
        "format": "chorus-ensemble/2",
        "name": "cells",
        "classes": [{"name": "background"}, {"name": "cell"}],
        "input": {"channels": ["membrane", "dna"], "normalisation": {"kind": "member"}, "diameter_px": 30},
        "activation": "sigmoid",
        "flows": True,
        "tile": TILE,
        "members": [entry(path).model_dump(exclude_none=True) for path in weights],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content | changes))
    return read_ensemble(str(folder))


# what it says


@pytest.mark.parametrize("outputs", [3, 5])
def test_a_member_says_what_cellposes_own_run_says_of_an_image(outputs: int, tmp_path: Path) -> None:
    network = cellpose_network(0, outputs)
    image = tiles(1)[0, :, 8:-8, 8:-8].permute(1, 2, 0).numpy()
    dy, dx, cell = core.run_net(network, image[None], bsize=TILE)[0][0, ..., -3:].transpose(2, 0, 1)
    path = saved(network, tmp_path / "cpsam")
    member = entry(path).load(asked(path), CPU)
    padded = torch.zeros((1, 3, TILE, TILE))  # as Cellpose pads an image to its tile
    padded[0, :, 8:-8, 8:-8] = torch.from_numpy(image).permute(2, 0, 1)
    answer = member(padded)[0, :, 8:-8, 8:-8].numpy()
    assert member.activation == "sigmoid"
    assert np.ptp(answer, axis=(1, 2)).min() > 1
    np.testing.assert_allclose(answer, np.stack([cell, dy, dx]), atol=1e-4)


def test_channels_that_are_missing_count_as_zero(tmp_path: Path) -> None:
    path = saved(cellpose_network(0), tmp_path / "cpsam")
    three, one = (entry(path).load(asked(path, channels=count), CPU) for count in (3, 1))
    tile = tiles(2, channels=1)
    padded = torch.cat([tile, torch.zeros((1, 2, TILE, TILE))], dim=1)
    torch.testing.assert_close(one(tile), three(padded), atol=1e-4, rtol=0)


def test_without_flows_it_gives_the_cell_alone(tmp_path: Path) -> None:
    path = saved(cellpose_network(0), tmp_path / "cpsam")
    plain, full = (entry(path).load(asked(path, flows=flows), CPU) for flows in (False, True))
    assert torch.equal(plain(tiles(3)), full(tiles(3))[:, :1])


def test_the_file_decides_the_type_of_the_weights(tmp_path: Path) -> None:
    network = cellpose_network(0)
    paths = [saved(network, tmp_path / "float32"), saved(network.to(torch.bfloat16), tmp_path / "bfloat16")]
    single, half = (entry(path).load(asked(path), CPU) for path in paths)
    assert half.parameters_bytes() * 2 == single.parameters_bytes()
    answer = half(tiles(4))
    assert answer.dtype == torch.float32
    expected = single(tiles(4))
    assert 0 < (answer - expected).abs().max() < 0.1 * np.ptp(expected.numpy())


def test_it_runs_in_half_precision_when_a_run_asks_for_it(tmp_path: Path) -> None:
    path = saved(cellpose_network(0), tmp_path / "cpsam")
    member = entry(path).load(asked(path), CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = member(tiles(6))
    expected = member(tiles(6))
    assert answer.dtype == torch.float32
    assert 0 < (answer - expected).abs().max() < 0.1 * np.ptp(expected.numpy())


def test_a_file_of_training_on_several_gpus_is_the_same_network(tmp_path: Path) -> None:
    network = cellpose_network(0)
    path, wrapped = saved(network, tmp_path / "plain"), tmp_path / "wrapped"
    # Such a file has the name of the wrapper before each key; one without mean diameters is read, too.
    state = {f"module.{key}": value for key, value in network.state_dict().items() if not key.startswith("diam_")}
    torch.save(state, wrapped)
    members = [entry(one).load(asked(one), CPU) for one in (path, wrapped)]
    assert torch.equal(members[0](tiles(5)), members[1](tiles(5)))


def test_two_of_them_are_an_ensemble_whose_posterior_is_the_mean_with_flows_turned_back(tmp_path: Path) -> None:
    networks = [cellpose_network(seed) for seed in (1, 2)]
    weights = [saved(network, tmp_path / f"cells-{seed}") for seed, network in enumerate(networks)]
    ensemble = cellpose_ensemble(tmp_path, weights)
    raw = np.random.default_rng(0).integers(0, 5000, (2, TILE, TILE)).astype(np.uint16)
    inputs = ensemble.all_inputs
    assert inputs.count == 2  # both have the same preparation: it is computed once
    prepared = inputs.preparations[0].apply(raw, surveyed(inputs.measures, [raw]))
    settings = settings_of("sigmoid", False, 2, TILE, ("identity", "vflip"), 1, flows=True)
    members = [ensemble.load_member(index, CPU) for index in range(2)]
    for index, member in enumerate(members):
        check_answer(ensemble, index, member, TILE, CPU)
    grid = Grid.make((TILE, TILE), TILE, 0.0)  # one tile, so that nothing is blended
    plane = PlaneWindow(prepared, WHOLE, grid)
    posterior = Engine(members, settings, CPU, inputs.channels).posterior(plane, WHOLE)

    normal = transforms.normalize_img(raw.transpose(1, 2, 0)).transpose(2, 0, 1)
    cell, flows = [], []
    for network in networks:
        for flipped in (False, True):
            x = np.concatenate([normal, np.zeros_like(normal[:1])])
            with torch.no_grad():
                y = network(torch.from_numpy(np.ascontiguousarray(x[:, ::-1] if flipped else x))[None])[0][0].numpy()
            dy, dx, logit = y[:, ::-1] if flipped else y
            cell.append(1 / (1 + np.exp(-logit)))
            flows.append([-dy if flipped else dy, dx])
    np.testing.assert_allclose(posterior.flows, np.mean(flows, axis=0), atol=1e-3)
    np.testing.assert_allclose(posterior.probability[1], np.mean(cell, axis=0), atol=1e-3)


# how it is fed


def noise(dtype: str) -> NDArray[Any]:
    rng = np.random.default_rng(3)
    raw = rng.gamma(2.0, 20.0, (3, 97, 131)) - (15 if dtype == "float32" else 0)
    return raw.clip(0, 255).astype(dtype) if dtype == "uint8" else (raw * 37).astype(dtype)


def constant(raw: NDArray[Any]) -> NDArray[Any]:
    raw[1] = 7
    return raw


def nearly_constant(raw: NDArray[Any]) -> NDArray[Any]:
    raw[2] = 5 + raw[2] / np.ptp(raw[2]) * 9e-4
    return raw


def few_bright(raw: NDArray[Any]) -> NDArray[Any]:
    """Less than one pixel in a hundred is not zero: there is contrast, but none between the percentiles."""
    raw[0] = 0
    raw[0, 3:6, 3:6] = 100
    return raw


@pytest.mark.parametrize(
    ("dtype", "made"),
    [
        ("uint8", np.copy),
        ("uint16", np.copy),
        ("float32", np.copy),
        ("uint8", constant),
        ("float32", nearly_constant),
        ("uint16", few_bright),
    ],
)
def test_pixels_are_normalised_as_cellpose_does(dtype: str, made: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    raw = made(noise(dtype))
    preparation = CellposeInput(3)
    prepared = preparation.apply(raw, surveyed(preparation.measures, [raw]))
    expected = transforms.normalize_img(np.copy(raw), axis=0)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, atol=1e-5, rtol=1e-5)


# what is refused


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("W2"), "neither W2 of Cellpose 4 nor the residual blocks"),
        (without("encoder.pos_embed"), "no encoder.pos_embed"),
        (without("encoder.blocks.1.attn.qkv.weight"), "lacks 1 of the network's weights"),
        (lambda state: state | {"out.weight": torch.zeros(192, 128, 1, 1)}, "do not fit Cellpose's sam_vitl"),
        (lambda state: state | {"step": 3}, "holds no state dict"),
    ],
)
def test_files_that_are_no_whole_cellpose_4_network_are_refused(
    change: Callable[[State], State], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "cells"
    torch.save(change(cellpose_network(0).state_dict()), path)
    with pytest.raises(RefusedError, match=said) as caught:
        entry(path).load(asked(path), CPU)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("pickled code ran",))


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "cells"
    path.write_bytes(pickle.dumps({"W2": Trap()}, protocol=2))
    with pytest.raises(RefusedError, match="never runs pickled code"):
        entry(path).load(asked(path), CPU)


def test_a_dinov3_backbone_says_what_is_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "cpdino"
    torch.save(cellpose_network(0).state_dict() | {"encoder.cls_token": torch.zeros(1, 1, 64)}, path)
    with pytest.raises(RefusedError, match=r"dinov3.*pip install"):
        entry(path).load(asked(path, tile=384), CPU)
    with pytest.raises(RefusedError, match="takes tiles of a multiple of 8, not 100"):
        entry(path).load(asked(path, tile=100), CPU)


def test_without_cellpose_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(cellpose_network(0), tmp_path / "cells")
    monkeypatch.setitem(sys.modules, "cellpose.vit", None)
    with pytest.raises(RefusedError, match=r"pip install 'chorus-bioimage\[cellpose\]'"):
        entry(path).load(asked(path), CPU)


def test_tiles_of_another_size_and_more_channels_are_refused_with_the_mend(tmp_path: Path) -> None:
    path = saved(cellpose_network(0), tmp_path / "cells")
    with pytest.raises(RefusedError, match="takes tiles of 256, not 512; set `tile: 256`"):
        entry(path).load(asked(path, tile=512), CPU)
    ensemble = cellpose_ensemble(
        tmp_path, [path], input={"channels": list("abcd"), "normalisation": {"kind": "member"}}
    )
    with pytest.raises(RefusedError, match="1 to 3 channels, not 4"):
        _ = ensemble.all_inputs


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = saved(cellpose_network(0), tmp_path / "cells")
    ensemble = cellpose_ensemble(tmp_path, [path], classes=[{"name": name} for name in ("background", "a", "b")])
    with pytest.raises(RefusedError, match="members must agree on the classes"):
        check_answer(ensemble, 0, ensemble.load_member(0, CPU), TILE, CPU)


# what it says of itself


def test_a_file_describes_itself_as_a_member_that_can_be_used(tmp_path: Path) -> None:
    path = saved(cellpose_network(0), tmp_path / "my-cells")
    told = describe(str(path))
    assert told.entry == entry(path)
    assert (told.name, told.classes, told.activation) == ("my-cells", ["background", "cell"], "sigmoid")
    assert ([entry.role for entry in told.outputs], told.tile) == (["classes", "flows"], TILE)
    assert "CC-BY-NC" in told.about.limits
    (tmp_path / "other").write_bytes(b"no weights")
    for missing in ("other", "absent"):
        with pytest.raises(RefusedError, match=missing):
            describe(str(tmp_path / missing))


@pytest.mark.parametrize("batch", [1, 2])
def test_what_it_says_does_not_depend_on_how_a_plane_is_cut(batch: int, tmp_path: Path) -> None:
    path = saved(cellpose_network(3), tmp_path / "cells")
    members = [entry(path).load(asked(path, channels=1), CPU)]
    settings = settings_of("sigmoid", False, 2, TILE, ("identity", "rot90"), batch, flows=True)
    grid = Grid.make((300, 280), TILE, 0.25)
    whole = Window.of(0, 300, 0, 280)
    pixels = np.random.default_rng(1).normal(size=(1, 300, 280)).astype(np.float32)
    plane, engine = PlaneWindow(pixels, whole, grid), Engine(members, settings, CPU)
    expected = engine.posterior(plane, whole)
    for part in (Window.of(0, 300, 0, 90), Window.of(150, 300, 90, 280)):
        found = engine.posterior(plane, part)
        inside = (slice(None), part.y.slice, part.x.slice)
        assert np.array_equal(found.flows, expected.flows[inside])
        assert np.array_equal(found.probability, expected.probability[inside])
