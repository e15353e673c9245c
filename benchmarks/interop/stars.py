"""Compare models of StarDist with `stardist` itself, which lives in an environment of its own.

    python benchmarks/interop/stars.py --python ENV/bin/python [--image IMAGE.png ...] [MODEL_FOLDER ...]

Per model and image: the network's probabilities and rays on StarDist's own pixels, objects from StarDist's own maps,
and a whole run of `chorus predict` of trained models, against StarDist's `predict` and `predict_instances`. Beside the
folders that are named, models of random weights: grids of 1, 2 and 4, odd kernels, classes, and networks of volumes, of
which Chorus takes no members yet. Images are simulated where none are named.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import imageio.v3 as iio
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import add
from chorus.pipeline.instances.stars.candidates import Candidates, StarMaps, StarSettings
from chorus.pipeline.instances.stars.regions import label_stars
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.members.kinds.stardist.folder import ModelFolder, read_folder
from chorus.pipeline.members.kinds.stardist.keras_weights import read_layers
from chorus.pipeline.members.kinds.stardist.network import build_network
from chorus.pipeline.metrics.objects import count_objects
from tests.support.making import write_image

WORKER = Path(__file__).with_name("stars_worker.py")
IOU_50, IOU_90 = 0, 8
Known = dict[str, NDArray[Any]]
Figures = dict[str, Any]


def main(
    python: Annotated[str, typer.Option(help="Of the environment with stardist.")],
    folders: Annotated[list[Path] | None, typer.Argument(help="Trained models of planes.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Grey images; simulated ones where there are none.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON of the figures.")] = None,
) -> None:
    """Print the comparison."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        paths = [_stored(scratch / f"{index:03d}.npy", one) for index, one in enumerate(_images(image or []))]
        subprocess.run([python, WORKER, "models", scratch / "models", paths[0]], check=True)
        trained = [folder.resolve() for folder in folders or []]
        models = sorted((scratch / "models").iterdir()) + trained
        (scratch / "answers").mkdir()
        subprocess.run([python, WORKER, "answers", scratch / "answers", *paths, *models], check=True)
        for model in models:
            content = read_folder(str(model))
            for path in paths:
                answers = scratch / "answers" / f"{model.name}-{path.stem}.npz"
                if not answers.exists():  # of volumes there is one
                    continue
                known = dict(np.load(answers))
                row: Figures = {"model": model.name, "trained": model in trained, "image": path.stem}
                row |= compared(content, known)
                if model in trained:
                    row |= whole_run(model, np.load(path), known["labels"], scratch / f"run-{answers.stem}")
                rows.append(row)
                Console(stderr=True).print(row)
    text = json.dumps(rows, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


def compared(model: ModelFolder, known: Known) -> Figures:
    """Compare what does not depend on how an image is tiled: the network, and objects from StarDist's own maps."""
    design, probability, distances = model.design, known["prob"], np.moveaxis(known["dist"], -1, 0)
    network = build_network(design, read_layers(model.weights_url, model.weights)).eval()
    padding = [(0, -n % step) for n, step in zip(known["pixels"].shape, design.divisor, strict=True)]
    padded = np.pad(known["pixels"], padding, mode="reflect").astype(np.float32)
    with torch.inference_mode():
        answer = network(torch.from_numpy(padded)[None, None])[0].numpy()
    answer = answer[:, *(slice(0, n) for n in probability.shape)]
    classes = design.n_classes or 1
    rays = np.abs(answer[classes:] - distances)
    figures: Figures = {
        "extended": padded.shape != known["pixels"].shape,
        "probabilities": float(np.abs(answer[:classes].sum(axis=0) - probability).max()),
        "rays": float(rays.max()),
        "longest_ray": float(distances.max()),
    }
    return figures | (objects(model, known) if design.n_dim == 2 else {})


def objects(model: ModelFolder, known: Known) -> Figures:
    """Compare objects that are made of StarDist's own maps."""
    grid, shape = model.design.grid, known["labels"].shape
    maps = [known["prob"][None], np.moveaxis(known["dist"], -1, 0)]
    for axis, step in enumerate(grid, 1):
        maps = [one.repeat(step, axis) for one in maps]
    window = Window.of(0, shape[0], 0, shape[1])
    probability, rays = (one[:, : shape[0], : shape[1]] for one in maps)
    settings = StarSettings(model.thresholds.prob, model.thresholds.nms, 1, (grid[0], grid[1]))
    candidates = Candidates.of(StarMaps(probability, rays, None, window), shape, settings)
    found = label_stars(lambda _: candidates, window, shape, candidates.longest, settings).objects
    own = {divmod(int(anchor) - 1, shape[1]) for anchor in found.anchors[1:]}
    theirs = {(int(y), int(x)) for y, x in known["points"]}
    names = np.unique(found.names, return_inverse=True)[1].reshape(shape)
    precision = count_objects(known["labels"], names).average_precision
    return {
        "objects": len(theirs),
        "own_objects": len(own),
        "same_points": len(own & theirs),
        "pixels_of_other_objects": int(((known["labels"] > 0) != (names > 0)).sum()),
        "ap50": precision[IOU_50],
        "ap90": precision[IOU_90],
    }


def whole_run(model: Path, image: NDArray[Any], labels: NDArray[Any], folder: Path) -> Figures:
    """Compare the objects of `chorus predict`, which mirrors beyond all edges and blends tiles."""
    ensemble = add(str(folder / "ensemble"), [str(model)], Wanted(channels=("grey",))).ensemble
    write_image(folder / "images" / "plane.ome.zarr", image)
    predict(
        PredictRequest(
            sources=[str(folder / "images")],
            ensemble=ensemble.url,
            out=str(folder / "out"),
            settings=ResultSettings(augmentations=["identity"]),
            run=RunSettings(executor="serial"),
            objects="stars",
        ),
        Silent(),
    )
    name = ensemble.spec.classes[1].name
    stored = open_labels(str(folder / "out" / "images" / "plane.ome.zarr"), name=name)
    own = np.asarray(stored[...]).reshape(image.shape)
    precision = count_objects(labels, own).average_precision
    return {"run_objects": int(len(np.unique(own)) - 1), "run_ap50": precision[IOU_50], "run_ap90": precision[IOU_90]}


def _images(paths: list[Path]) -> list[NDArray[Any]]:
    if not paths:
        # StarDist extends the second, whose size the networks cannot halve, and keeps points close to these edges.
        return [simulate_field(seed, shape)[0] for seed, shape in enumerate(((256, 256), (250, 233)))]
    images = [iio.imread(path) for path in paths]
    return [image[..., 0] if image.ndim == 3 else image for image in images]


def _stored(path: Path, image: NDArray[Any]) -> Path:
    np.save(path, image)
    return path


if __name__ == "__main__":
    typer.run(main)
