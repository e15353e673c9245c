"""Compare networks of Cellpose 1 to 3 with `cellpose` 3.1 itself, which lives in an environment of its own.

    python3.11 -m venv ENV && ENV/bin/pip install 'cellpose==3.1.*' imageio
    python benchmarks/interop/cellpose3.py --python ENV/bin/python WEIGHTS IMAGE.png ... --out cellpose3.json

Of each grey image: normalised pixels, the network's answer and style for one tile, objects from Cellpose's own maps,
its style, and what its size model (beside WEIGHTS) makes of it; then a whole run of `chorus predict --diameter auto`
beside `CellposeModel.eval`. `--fixture FILE` writes the answers that the tests hold instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import add
from chorus.pipeline.instances.plane_objects import PlaneInMemory, plane_objects
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.instances.shapes import SQUARE
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.members.contract import LoadRequest, ModuleMember
from chorus.pipeline.members.kinds.cellpose.member import CellposeInput, CellposeMember
from chorus.pipeline.metrics.objects import count_objects
from chorus.pipeline.preprocessing.preparation import surveyed
from tests.support.cellpose_networks import NARROW, residual_state
from tests.support.engines import outputs_of
from tests.support.making import write_image

TILE = 224
IOU_50, IOU_90 = 0, 8


def theirs(python: str, arguments: list[str]) -> None:
    """Run the part that needs Cellpose 3 in its environment."""
    subprocess.run([python, str(Path(__file__).with_name("cellpose3_worker.py")), *arguments], check=True)


def write_fixture(python: str, target: Path) -> None:
    """Write what CPnet answers with the weights of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        weights, given = Path(folder) / "weights", Path(folder) / "tiles.npy"
        torch.save(residual_state(), weights)
        np.save(given, np.random.RandomState(1).rand(2, 2, 16, 16).astype(np.float32))
        theirs(python, ["fixture", str(weights), str(given), str(target), *map(str, NARROW)])


def compare(weights: Path, image: NDArray[Any], known: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Compare what does not depend on how an image is tiled."""
    raw, preparation = image[None], CellposeInput(1)
    normalised = preparation.apply(raw, surveyed(preparation.measures, [raw]))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    size = weights.with_name(f"{weights.name}_size.npy")
    member = CellposeMember(
        kind="cellpose",
        weights=str(weights),
        sha256=digest,
        size_sha256=hashlib.sha256(size.read_bytes()).hexdigest(),
    )
    asked = LoadRequest(str(weights), 1, outputs_of(2, "sigmoid", flows=True), TILE)
    network = member.load(asked, torch.device("cpu"))
    assert isinstance(network, ModuleMember)
    with torch.inference_mode():
        answer = network(torch.from_numpy(known["tile"][:, :1]))[0].numpy()
        style = network.encoded()[0, :, 0, 0].numpy()
    regression = member.size_regression(asked)
    assert regression is not None
    kept, everything = (precision(known[masks], known, error) for masks, error in (("masks", 0.4), ("masks_all", None)))
    return {
        "pixels": float(np.abs(normalised[0] - known["normalised"]).max()),
        "outputs": float(np.abs(answer - known["answer"]).max()),
        "style": float(np.abs(style - known["tile_style"]).max()),
        "style_diameter": abs(regression.diameter(known["style"]) / float(known["diam_style"]) - 1),
        "objects": int(known["masks_all"].max()),
        "ap50": everything[IOU_50],
        "ap90": everything[IOU_90],
        "objects_flow_threshold": int(known["masks"].max()),
        "ap90_flow_threshold": kept[IOU_90],
    }


def precision(masks: NDArray[Any], known: dict[str, NDArray[Any]], flow_error: float | None) -> list[float]:
    """Return the AP of objects from Cellpose's own maps against its own masks, with and without a flow threshold."""
    plane = PlaneInMemory((known["cell"] > 0).astype(np.uint8), {}, known["flows"])
    settings = ObjectSettings(30.0, 15, flow_error, lengths=True)
    names = plane_objects(plane, masks.shape, 1, "flows", settings, lambda _: [], [], 256, SQUARE).names
    return count_objects(masks, np.unique(names, return_inverse=True)[1].reshape(masks.shape)).average_precision


def whole_runs(
    weights: Path, images: list[NDArray[Any]], known: list[dict[str, NDArray[Any]]], folder: Path
) -> list[dict[str, float]]:
    """Compare whole runs: Cellpose's tiles overlap by a tenth and are padded with zeros, those of Chorus are not."""
    ensemble = add(str(folder / "cells"), [str(weights)], Wanted(channels=("grey",))).ensemble
    rows = []
    for index, image in enumerate(images):
        write_image(folder / "images" / f"{index:03d}.ome.zarr", image)
    for name, diameter in (("auto", "auto"), ("plain", None)):
        predict(
            PredictRequest(
                sources=[str(folder / "images")],
                ensemble=ensemble.url,
                out=str(folder / name),
                settings=ResultSettings(diameter=diameter, augmentations=["identity"]),
                run=RunSettings(executor="serial"),
                objects="flows",
            ),
            Silent(),
        )
    found = read_scores(str(folder / "auto")).set_index("name")["diameter_px"]
    for index, answers in enumerate(known):
        name = f"{index:03d}.ome.zarr"
        labels = np.asarray(open_labels(str(folder / "plain" / "images" / name), name="cell")[...]).reshape(
            images[index].shape
        )
        counts = count_objects(answers["masks_all"], labels)
        rows.append(
            {
                "diameter": float(found[name]),
                "cellpose_diameter": float(answers["diam"]),
                "run_ap50": counts.average_precision[IOU_50],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment with cellpose 3.1")
    parser.add_argument("--fixture", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--answers", type=Path, help="Folder of Cellpose's answers, which are kept there.")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("images", nargs="*")
    asked = parser.parse_args()
    if asked.fixture:
        write_fixture(asked.python, asked.fixture)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        answers = asked.answers or folder
        answers.mkdir(parents=True, exist_ok=True)
        theirs(asked.python, ["images", str(asked.weights), str(answers), *asked.images])
        known = [dict(np.load(answers / f"{Path(path).stem}.npz")) for path in asked.images]
        images = [one["image"] for one in known]
        rows = [compare(asked.weights, image, one) for image, one in zip(images, known, strict=True)]
        whole = whole_runs(asked.weights, images, known, folder)
    result = [{"image": Path(p).name, **a, **b} for p, a, b in zip(asked.images, rows, whole, strict=True)]
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
