"""One peer on the images of a folder that ``benchmarks/peers.py`` wrote, in a process of its own.

Every peer gets a plane of raw pixels in memory, normalises it by the same percentiles, and gives the mean probability
of the foreground over all members and the four flips, as its own users would have it. Nothing but the libraries that
are asked for is imported; `pipeline` is Chorus without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Answer = Callable[[NDArray[np.uint16]], NDArray[np.float32]]
FLIPS = ((), (-1,), (-2,), (-2, -1))
WARM_UP = 512  # edge of what is computed before the clock runs


class Inputs:
    """What the driver asks for: tile, overlap, members and how to prepare pixels."""

    def __init__(self, folder: Path, backend: Any) -> None:
        self.folder = folder
        self.backend = backend
        content = json.loads((folder / "inputs.json").read_text())
        self.tile: int = content["tile"]
        self.overlap: float = content["overlap"]
        self.percentiles: list[float] = content["percentiles"]
        self.members: list[dict[str, Any]] = content["members"]

    def range_of(self, image: NDArray[np.uint16]) -> tuple[float, float]:
        low, high = np.percentile(image, self.percentiles)
        return float(low), float(high - low)

    def normalised(self, image: NDArray[np.uint16]) -> torch.Tensor:
        """(1, 1, y, x) float32."""
        low, span = self.range_of(image)
        return torch.from_numpy(((image.astype(np.float32) - low) / span)[None, None])

    def network(self, entry: dict[str, Any]) -> torch.nn.Module:
        import segmentation_models_pytorch as smp

        network: torch.nn.Module = smp.create_model(
            entry["architecture"],
            encoder_name=entry["encoder"],
            encoder_weights=None,
            in_channels=1,
            classes=2,
            **entry["options"],
        )
        network.load_state_dict(self.weights(entry))
        return network.eval()

    def weights(self, entry: dict[str, Any]) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return {name: tensor.float() for name, tensor in load_file(self.folder / "ensemble" / entry["weights"]).items()}


def monai(inputs: Inputs) -> Answer:
    """`sliding_window_inference` for each member and each flip of the whole image; mean of the softmax."""
    from monai.inferers import sliding_window_inference  # type: ignore[import-not-found]

    networks = [inputs.network(entry) for entry in inputs.members]

    def answer(image: NDArray[np.uint16]) -> NDArray[np.float32]:
        pixels, total = inputs.normalised(image), torch.zeros(image.shape)
        with torch.inference_mode():
            for network in networks:
                for axes in FLIPS:
                    logits = sliding_window_inference(
                        pixels.flip(axes), inputs.tile, 4, network, overlap=inputs.overlap, mode="gaussian"
                    )
                    total += logits.softmax(dim=1)[0, 1].flip(axes)
        return (total / (len(networks) * len(FLIPS))).numpy()

    return answer


def nnunet(inputs: Inputs) -> Answer:
    """`nnUNetPredictor` with mirroring over both axes and the members as folds; softmax of the mean logits."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # type: ignore[import-not-found]
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # type: ignore[import-not-found]

    configuration = {"patch_size": [inputs.tile] * 2, "architecture": {}}
    plans = PlansManager({"configurations": {"2d": configuration}, "label_manager": "LabelManager"})
    dataset = {"labels": {"background": 0, "nucleus": 1}}
    predictor = nnUNetPredictor(1 - inputs.overlap, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        inputs.network(inputs.members[0]),
        plans,
        plans.get_configuration("2d"),
        [inputs.weights(entry) for entry in inputs.members],
        dataset,
        "nnUNetTrainer",
        (0, 1),
    )

    def answer(image: NDArray[np.uint16]) -> NDArray[np.float32]:
        logits = predictor.predict_logits_from_preprocessed_data(inputs.normalised(image)[0][:, None])
        found: NDArray[np.float32] = predictor.label_manager.apply_inference_nonlin(logits.float())[1, 0].numpy()
        return found

    return answer


def bioimageio(inputs: Inputs) -> Answer:
    """A packed model for each member, blockwise with the package's halo, for each flip of the whole image."""
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.core.digest_spec import create_sample_for_model
    from bioimageio.spec import load_model_description

    packages = sorted((inputs.folder / "packages").glob("*.zip"))
    pipelines: list[Any] = [create_prediction_pipeline(load_model_description(package)) for package in packages]
    for one in pipelines:
        one.load()
    block = {"y": inputs.tile, "x": inputs.tile}

    def answer(image: NDArray[np.uint16]) -> NDArray[np.float32]:
        total = np.zeros(image.shape, np.float32)
        for one in pipelines:
            entry = one.model_descr.inputs[0]
            shape = {entry.id: {str(axis.id): block.get(str(axis.id), 1) for axis in entry.axes}}
            for axes in FLIPS:
                flipped = np.ascontiguousarray(np.flip(image, axes))[None, None]
                sample = create_sample_for_model(one.model_descr, inputs=flipped, sample_id="image")
                found = one.predict_sample_with_fixed_blocking(sample, shape)
                total += np.flip(found.members[one.model_descr.outputs[0].id].data.to_numpy()[0, 1], axes)
        return total / np.float32(len(pipelines) * len(FLIPS))

    return answer


def deepflash2(inputs: Inputs) -> Answer:
    """`InferenceEnsemble` as the learner makes it: traced members, scripted, with its flips and its Gaussian."""
    from deepflash2.inference import InferenceEnsemble  # type: ignore[import-not-found]

    networks = [inputs.network(entry) for entry in inputs.members]
    ensemble: Any = None

    def answer(image: NDArray[np.uint16]) -> NDArray[np.float32]:
        nonlocal ensemble
        low, span = inputs.range_of(image)
        if ensemble is None:
            made = InferenceEnsemble(
                networks,
                num_classes=2,
                in_channels=1,
                channel_means=[0.0],
                channel_stds=[1.0],
                tile_shape=(inputs.tile, inputs.tile),
                use_tta=True,
                max_tile_shift=1 - inputs.overlap,
            )
            ensemble = torch.jit.script(made)
        # Its means and deviations are those of a data set; these are the image's own.
        with torch.inference_mode():
            _, softmax, _ = ensemble(torch.from_numpy((image.astype(np.float32) - low) / span)[..., None])
        found: NDArray[np.float32] = softmax[1].numpy()
        return found

    return answer


def pipeline(inputs: Inputs) -> Answer:
    """Chorus's engine on the whole plane, in this process, with the networks on `inputs.backend`."""
    from chorus.pipeline.backends.loading import load_members
    from chorus.pipeline.core.geometry import Window
    from chorus.pipeline.core.tiling import Grid
    from chorus.pipeline.ensembles.ensemble import read_ensemble
    from chorus.pipeline.inference.allocation import keep_freed_memory
    from chorus.pipeline.inference.engine import Engine
    from chorus.pipeline.inference.posterior_builder import InferenceSettings, tiles_per_call
    from chorus.pipeline.inference.tile_stream import PlaneWindow
    from chorus.pipeline.preprocessing.preparation import surveyed

    keep_freed_memory()
    ensemble = read_ensemble(str(inputs.folder / "ensemble"))
    spec, device = ensemble.spec, torch.device("cpu")
    settings = InferenceSettings(
        outputs=ensemble.outputs,
        multilabel=ensemble.multilabel,
        tile=spec.tile,
        augmentations=tuple(spec.augmentations),
        batch=tiles_per_call("cpu", spec.tile, len(spec.augmentations)),
    )
    members = load_members(ensemble, range(len(spec.members)), device, spec.tile, inputs.backend, "fp32")
    engine = Engine(members, settings, device, ensemble.all_inputs.channels)

    def answer(image: NDArray[np.uint16]) -> NDArray[np.float32]:
        raw = image[None]
        statistics = surveyed(ensemble.all_inputs.measures, [raw])
        pixels = np.concatenate([one.apply(raw, statistics) for one in ensemble.all_inputs.preparations])
        height, width = image.shape
        whole = Window.of(0, height, 0, width)
        plane = PlaneWindow(pixels, whole, Grid.make((height, width), spec.tile, spec.overlap))
        found: NDArray[np.float32] = engine.posterior(plane, whole).probability[1]
        return found

    return answer


PEERS = {
    "pipeline": (pipeline, "chorus-bioimage"),
    "monai": (monai, "monai"),
    "nnunet": (nnunet, "nnunetv2"),
    "bioimageio": (bioimageio, "bioimageio.core"),
    "deepflash2": (deepflash2, "deepflash2"),
}


def peak_bytes() -> int:
    """What this process took at most (Linux); `resource` would count what started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Answer every image and leave the maps and ``result.json`` in OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", default="eager", help="of `pipeline`; see `chorus bench engine`")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    begin, distribution = PEERS[given.peer]
    started = time.perf_counter()
    answer = begin(Inputs(given.inputs, given.backend))
    paths = sorted((given.inputs / "images").glob("*.npy"))
    answer(np.load(paths[0])[:WARM_UP, :WARM_UP].copy())
    load, start_up = os.getloadavg(), time.perf_counter() - started
    seconds, processor = 0.0, 0.0
    for path in paths:
        image = np.load(path)
        started, used = time.perf_counter(), time.process_time()
        found = answer(image)
        seconds, processor = seconds + time.perf_counter() - started, processor + time.process_time() - used
        np.save(given.out / path.name, found)
    result = {
        "version": version(distribution),
        "torch": version("torch"),
        "threads": given.threads,
        "start_up_seconds": start_up,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_bytes": peak_bytes(),
        "load_before_after": [round(one[0], 1) for one in (load, os.getloadavg())],
    }
    # The last thing that is written: a peer without it is asked anew.
    (given.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
