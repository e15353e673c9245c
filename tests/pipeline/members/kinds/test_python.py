"""Networks that a function of an installed package builds: trusted, they answer as themselves; else nothing runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.python import PythonMember
from tests.support.research import installed


@pytest.fixture
def imported(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path) as file:
        yield file


def network(width: int = 4, axes: int = 2) -> torch.nn.Module:
    import research_nets

    module: torch.nn.Module = research_nets.Nets.several(width, axes)
    return module


def ensemble_of(folder: Path, state: dict[str, torch.Tensor], axes: str = "yx", **fields: Any) -> Path:
    folder.mkdir()
    save_file(state, folder / "m.safetensors")
    digest = hashlib.sha256((folder / "m.safetensors").read_bytes()).hexdigest()
    member = {"kind": "python", "factory": "research_nets:Nets.several", "weights": "m.safetensors", "sha256": digest}
    normalisation = {"kind": "mean_std", "mean": [500.0], "std": [300.0]}
    content = {
        "format": "chorus-ensemble/2",
        "name": "research",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {
            "channels": ["dna"],
            "axes": axes,
            "normalisation": normalisation,
        },
        "tile": 32 if axes == "yx" else [8, 32, 32],
        "members": [member | {"options": {"width": 4}, "output": "classes", "channels": [2, 0]} | fields],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"


def test_a_trusted_network_answers_as_itself(imported: Path, tmp_path: Path) -> None:
    module = network()
    url = ensemble_of(tmp_path / "e", module.state_dict())
    member = read_ensemble(str(url), trust_code=True).load_member(0, torch.device("cpu"))
    tiles = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(member(tiles), module(tiles)["classes"][:, [2, 0]], rtol=0, atol=1e-6)


def test_without_trust_nothing_is_imported(imported: Path, tmp_path: Path) -> None:
    state = network().state_dict()
    imported.unlink()
    import sys

    del sys.modules["research_nets"]
    url = ensemble_of(tmp_path / "e", state)
    with pytest.raises(RefusedError, match=r"built by the code of research_nets:Nets.several; .* --trust-code"):
        read_ensemble(str(url)).load_member(0, torch.device("cpu"))
    assert not imported.exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"factory": "no_such_package:build"}, "cannot be imported .*install its package on every machine"),
        ({"factory": "research_nets:build"}, "cannot be imported"),
        ({"factory": "research_nets:number"}, "is no function"),
        ({"factory": "research_nets:fails", "options": {}}, "KeyError: .*no such thing"),
        ({"factory": "research_nets:nothing", "options": {}}, "returns str, not a torch.nn.Module"),
        ({"options": {"depth": 4}}, "does not build a network with the options .*depth"),
        ({"options": {"width": 5}}, "these weights are not of what research_nets:Nets.several builds"),
        ({"output": "boundaries"}, "has no output boundaries"),
    ],
)
def test_what_does_not_fit_is_one_sentence(imported: Path, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    url = ensemble_of(tmp_path / "e", network().state_dict(), **fields)
    with pytest.raises(RefusedError, match=said):
        read_ensemble(str(url), trust_code=True).load_member(0, torch.device("cpu"))(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("factory", ["os.system", "os:", "a b:c", "../evil:f", "m:f()"])
def test_a_factory_has_the_form_of_package_and_function(factory: str) -> None:
    with pytest.raises(ValidationError, match="factory"):
        PythonMember(kind="python", factory=factory, weights="m.safetensors")


def test_a_network_of_volumes_sees_volumes(imported: Path, tmp_path: Path) -> None:
    module = network(4, 3)
    url = ensemble_of(tmp_path / "e", module.state_dict(), "zyx", options={"width": 4, "axes": 3})
    member = read_ensemble(str(url), trust_code=True).load_member(0, torch.device("cpu"))
    assert member(torch.zeros(1, 1, 8, 32, 32)).shape == (1, 2, 8, 32, 32)


def test_a_class_of_torch_em_is_a_factory(tmp_path: Path) -> None:
    model = pytest.importorskip("torch_em.model")
    options = {"in_channels": 1, "out_channels": 2, "depth": 2, "initial_features": 4}
    module = model.UNet2d(**options)
    url = ensemble_of(
        tmp_path / "e", module.state_dict(), factory="torch_em.model:UNet2d", options=options, output=0, channels=None
    )
    member = read_ensemble(str(url), trust_code=True).load_member(0, torch.device("cpu"))
    tiles = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(member(tiles), module.eval()(tiles), rtol=0, atol=1e-5)
