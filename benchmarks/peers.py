"""Chorus and its peers on the same images with the same weights: seconds, and whether what comes out is as good.

Five members and four flips, tiles of one size with one overlap, on the same cores. Each peer runs as its users would
run it for a deep ensemble (`benchmarks/peers/worker.py`), in a process of its own, after a warm-up, from a plane in
memory to the mean probability in memory. Chorus is measured twice: `pipeline` is its engine in one process, as the
peers are, and `chorus` the whole ``chorus predict`` on Ray, from OME-Zarr to OME-Zarr with all its maps, labels and
scores; what comes before its stream of regions begins and after it ends (starting Ray, trying the ensemble, the report)
is given apart.

Everything is kept in a folder, peer by peer: the same command again asks those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
import yaml
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from skimage.measure import label

from benchmarks.records import keep
from chorus.pipeline.bioimageio.export import pack_members
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.io.outputs.writer import open_posterior
from chorus.pipeline.metrics.objects import components, count_objects
from chorus.pipeline.metrics.segmentation import dice
from chorus.pipeline.training.data.pairs import find_pairs, load_pair

Network = Literal["nuclei-fluo", "resnet18"]
STARTER = Path("chorus/builtin/nuclei-fluo")
WORKER = Path(__file__).parent / "peers" / "worker.py"
TILE, OVERLAP, PERCENTILES = 256, 0.5, (1.0, 99.8)
PEERS = ("pipeline", "chorus", "monai", "nnunet", "bioimageio", "deepflash2")
OURS = ("pipeline", "chorus")
REFERENCE = "pipeline"  # what maps are compared with
SMALLEST_OBJECT = 15  # pixels; smaller ones are left out of truth and prediction
console = Console()


def main(
    work: Annotated[Path, typer.Argument(help="Folder for images, weights and results.")],
    python: Annotated[Path, typer.Option(help="Python that has the peers; see peers/requirements.txt.")] = Path(
        sys.executable
    ),
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds bbbc039/test, for real fields; else they are simulated.")
    ] = None,
    network: Annotated[
        Network, typer.Option(help="The starter's trained networks, or ResNet-18 U-Nets with random weights.")
    ] = "nuclei-fluo",
    size: Annotated[int, typer.Option(help="Edge of an image.")] = 2048,
    count: Annotated[int, typer.Option(help="Images.")] = 1,
    members: Annotated[int, typer.Option(help="Out of five.", min=1, max=5)] = 5,
    peers: Annotated[
        str, typer.Option(help="Comma-separated; pipeline:BACKEND is the engine on another backend.")
    ] = ",".join(PEERS),
    threads: Annotated[int, typer.Option(help="Of each peer.")] = 2,
    chorus_option: Annotated[
        list[str] | None, typer.Option(help="Passed on to chorus predict, e.g. --chorus-option=--backend=onnxruntime")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Compare Chorus with its peers.

    Examples: `python benchmarks/peers.py /tmp/peers --python peers/bin/python --size 1024`;
    `python benchmarks/peers.py /tmp/many --python peers/bin/python --size 1024 --count 32`
    """
    settings = {
        "network": network,
        "size": size,
        "count": count,
        "members": members,
        "data": "bbbc039/test" if data else "simulated",
    }
    write_inputs(work, settings, data)
    options = chorus_option or []
    names = []
    for entry in peers.split(","):
        peer, _, backend = entry.partition(":")
        if peer not in PEERS or (backend and peer != "pipeline"):
            known = f"{', '.join(PEERS)}, pipeline:BACKEND"
            raise typer.BadParameter(f"{entry!r} is none of {known}", param_hint="--peers")
        name = "-".join(["chorus", *(option.strip("-") for option in options)]) if peer == "chorus" else entry
        names.append(name)
        out = work / "out" / name
        if (out / "result.json").exists():
            continue
        console.print(f"{name} ...", highlight=False)
        out.mkdir(parents=True, exist_ok=True)
        if peer == "chorus":
            measure_run(work, out, threads, options)
        else:
            command = [
                sys.executable if peer in OURS else str(python.absolute()),
                str(WORKER),
                peer,
                str(work),
                str(out),
            ]
            command += ["--threads", str(threads), *(["--backend", backend] if backend else [])]
            call(command, out, threads)
    report(work, names, settings, results)


def call(command: Sequence[str], out: Path, threads: int) -> float:
    """Seconds that a command took; what it prints goes to ``log.txt``, whose end is shown where it fails."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TQDM_DISABLE": "1",
    }
    with (out / "log.txt").open("w") as log:
        started = time.perf_counter()
        code = subprocess.run(command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT).returncode
        seconds = time.perf_counter() - started
    if code:
        console.print((out / "log.txt").read_text()[-2000:], markup=False, highlight=False)
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds


def measure_run(work: Path, out: Path, threads: int, options: list[str]) -> None:
    """``chorus predict`` on all images; maps and ``result.json`` as the workers leave them."""
    sources = sorted(str(path) for path in (work / "images").glob("*.zarr"))
    command = [sys.executable, "-m", "chorus.cli", "predict", *sources, "--ensemble", str(work / "ensemble")]
    command += ["--executor", "ray"]
    command += ["--out", str(out / "run"), "--overwrite", *options]
    before = os.getloadavg()[0]
    whole = call(command, out, threads)
    for path in sorted((work / "images").glob("*.npy")):
        maps = np.asarray(open_posterior(str(out / "run" / "images" / f"{path.stem}.ome.zarr"))[:])
        np.save(out / path.name, maps[1].astype(np.float32))
    run = json.loads((out / "run" / "run.json").read_text())
    seconds = run["summary"]["measured_seconds"]
    result = {
        "version": run["chorus"],
        "torch": run["versions"]["torch"],
        "threads": threads,
        "options": options,
        "start_up_seconds": whole - seconds,
        "seconds": seconds,
        "device_busy": run["summary"]["device_busy"],
        "load_before_after": [round(before, 1), round(os.getloadavg()[0], 1)],
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def write_inputs(work: Path, settings: dict[str, Any], data: Path | None) -> None:
    """Images as arrays and as OME-Zarr, truths, the ensemble and its packages; nothing where they are there."""
    path = work / "inputs.json"
    if path.exists():
        found = json.loads(path.read_text())["settings"]
        if found != settings:
            raise typer.BadParameter(f"holds what was made with {found}; name another folder", param_hint="WORK")
        return
    for name in ("images", "truths", "packages"):
        (work / name).mkdir(parents=True, exist_ok=True)
    for index in range(settings["count"]):
        image, truth = field(data, settings["size"], index)
        np.save(work / "images" / f"{index:03d}.npy", image)
        np.save(work / "truths" / f"{index:03d}.npy", truth)
        write_zarr(work / "images" / f"{index:03d}.zarr", image)
    members = write_ensemble(work / "ensemble", settings["network"], settings["members"])
    ensemble = read_ensemble(str(work / "ensemble"))
    for old in (work / "packages").iterdir():
        old.unlink()
    pack_members(ensemble, ensemble.spec.about, work / "packages", range(len(members)))
    content = {"tile": TILE, "overlap": OVERLAP, "percentiles": PERCENTILES, "members": members, "settings": settings}
    path.write_text(json.dumps(content, indent=2) + "\n")


def field(data: Path | None, size: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """A square image and the nuclei in it: real fields side by side, turned by turns, or one simulated field."""
    if data is None:
        image, truth = simulate_field(seed, (size, size))
        return image, truth.astype(np.int32)
    folder = data / "bbbc039" / "test"
    pairs = find_pairs(str(folder / "images"), str(folder / "labels"), ["dna"]).pairs
    height, width = load_pair(pairs[0])[1].shape
    rows, columns = -(-size // height), -(-size // width)
    image, truth = (
        np.zeros((rows * height, columns * width), np.uint16),
        np.zeros((rows * height, columns * width), int),
    )
    for place in range(rows * columns):
        pixels, labels = load_pair(pairs[(place + seed * rows * columns) % len(pairs)])
        at = slice(place // columns * height, None), slice(place % columns * width, None)
        turn = (slice(None, None, (-1) ** (place // columns)), slice(None, None, (-1) ** place))
        image[at][:height, :width] = pixels[0][turn]
        truth[at][:height, :width] = np.where(labels > 0, labels.astype(np.int64) + place * 100_000, 0)[turn]
    # What was cut, or met its neighbour, is numbered anew.
    numbered = label(truth[:size, :size], connectivity=1)  # type: ignore[no-untyped-call]
    return image[:size, :size].copy(), numbered.astype(np.int32)


def write_zarr(path: Path, image: NDArray[np.uint16]) -> None:
    """OME-Zarr 0.5, (y, x), chunks of 256."""
    datasets = [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    multiscales = [{"axes": axes, "datasets": datasets, "name": "field"}]
    attributes = {"ome": {"version": "0.5", "multiscales": multiscales}}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes, overwrite=True)
    group.create_array("s0", data=image, chunks=(256, 256), dimension_names=["y", "x"])


def write_ensemble(folder: Path, network: Network, count: int) -> list[dict[str, Any]]:
    """Members that say background or nucleus, and no flows, which peers have no place for; what each is made of."""
    import segmentation_models_pytorch as smp

    folder.mkdir(exist_ok=True)
    starter = yaml.safe_load((STARTER / "ensemble.yaml").read_text())
    entries = []
    for index in range(count):
        if network == "nuclei-fluo":
            entry = dict(starter["members"][index])
            tensors = load_file(STARTER / entry["weights"])
            tensors |= {name: tensors[name][:2] for name in tensors if name.startswith("segmentation_head")}
        else:
            entry = {"kind": "smp", "architecture": "Unet", "encoder": "resnet18", "options": {}}
            torch.manual_seed(index)
            module = smp.create_model("Unet", "resnet18", encoder_weights=None, in_channels=1, classes=2)
            tensors = module.state_dict()
        weights = folder / f"member-{index}.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, weights)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        entries.append(entry | {"weights": weights.name, "sha256": digest})
    about = {name: starter["about"][name] for name in ("description", "licence", "authors", "cite")}
    content = {name: starter[name] for name in ("format", "classes", "input", "activation", "augmentations")}
    content |= {"name": "peers", "tile": TILE, "overlap": OVERLAP, "members": entries, "about": about}
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return entries


def report(work: Path, names: Sequence[str], settings: dict[str, Any], folder: Path) -> None:
    """One table of all, ratios to `REFERENCE` among them; the figures are kept as JSON."""
    rows = {name: json.loads((work / "out" / name / "result.json").read_text()) for name in names}
    reference = work / "out" / REFERENCE / "result.json"
    seconds = json.loads(reference.read_text())["seconds"] if reference.exists() else None
    for name, row in rows.items():
        row |= quality(work, name)
        row["times_pipeline"] = row["seconds"] / seconds if seconds else None
    table = Table(title=f"{settings}")
    heads = ("", "seconds", "CPU s", "x pipeline", "start-up s", "MB", "Dice", "AP50", "mean |dp|", "max |dp|")
    for head in (*heads, "load"):
        table.add_column(head, justify="right")
    for name, row in rows.items():
        table.add_row(
            f"{name} {row['version']}",
            f"{row['seconds']:.1f}",
            *(f"{row[key] / unit:.1f}" if row.get(key) else "" for key, unit in _OPTIONAL),
            f"{row['start_up_seconds']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "",
            f"{row['dice']:.4f}",
            f"{row['ap50']:.4f}",
            *(f"{row[key]:.1e}" if key in row else "" for key in ("mean_difference", "max_difference")),
            " to ".join(f"{one}" for one in row["load_before_after"]),
        )
    console.print(table)
    keep(folder, "-peers", [{"peer": name} | settings | row for name, row in rows.items()])


_OPTIONAL = (("processor_seconds", 1.0), ("times_pipeline", 1.0))


def quality(work: Path, name: str) -> dict[str, float]:
    """Dice and AP of objects (components) against the truth, and the difference of the maps from `REFERENCE`'s."""
    dices, objects, differences = [], None, []
    for path in sorted((work / "truths").glob("*.npy")):
        truth, found = np.load(path), np.load(work / "out" / name / path.name)
        dices.append(dice(found > 0.5, truth > 0))
        counts = count_objects(truth, components(found > 0.5), minimum_size=SMALLEST_OBJECT)
        objects = counts if objects is None else objects + counts
        reference = work / "out" / REFERENCE / path.name
        if reference.exists():
            differences.append(np.abs(found - np.load(reference)))
    result = {"dice": float(np.mean(dices)), "ap50": objects.average_precision[0] if objects else 1.0}
    if differences:
        result["mean_difference"] = float(np.mean([one.mean() for one in differences]))
        result["max_difference"] = float(max(one.max() for one in differences))
    return result


if __name__ == "__main__":
    typer.run(main)
