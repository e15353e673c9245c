"""A small ensemble trained on the spot, on simulated nuclei: for the demo and for trying things out.

Members differ as the members of a deep ensemble do: in their starting weights and in what they have seen. Fields
out of focus or with little signal are kept from them, so that their doubt there is real.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors
from torch.nn import functional

from pipeline import storage
from pipeline.ensemble import FORMAT, EnsembleSpec
from pipeline.normalisation import Percentile, apply, image_statistics
from pipeline.samples import PIXEL_SIZE_UM, Quality, simulate_field

# In the same time ResNet-18 gains 0.01 of Dice, but then takes twice as long on every tile and 45 MB a member, not 3.
ENCODER = "tu-mobilenetv4_conv_small_050"
OPTIONS = {"decoder_channels": [64, 48, 32, 24, 16]}
NORMALISATION = Percentile(low=1.0, high=99.8)

_TRAINING: tuple[Quality, ...] = ("ordinary",) * 5 + ("dense",) * 2 + ("sparse",) * 2 + ("empty",) * 2
_HELD_OUT = 3  # fields of ordinary quality
_CROP = 128
_BATCH = 8
_LEARNING_RATE = 3e-3
_WARM_UP = 0.06  # share of the time

# Apart from the first number, the seed, what a simulated field is for; so no field is met twice.
_FOR_TRAINING, _FOR_HELD_OUT = 101, 102


@dataclass(frozen=True, slots=True)
class _Field:
    """A normalised field, (y, x) float32, and its foreground, (y, x) int64 with values 0 and 1."""

    image: NDArray[np.float32]
    foreground: NDArray[np.int64]


def train_quick_ensemble(
    folder: str | Path,
    *,
    members: int = 3,
    seconds: float = 100,
    seed: int,
    progress: Callable[[str], None],
) -> Path:
    """Train `members` small U-Nets on simulated nuclei and write them as an ensemble.

    Parameters
    ----------
    folder : gets ``member-<i>.safetensors`` and ``ensemble.yaml``
    members : networks to train, side by side
    seconds : wall time for all of them, simulation and the look at held-out fields included
    seed : of weights, fields and crops. The time decides how many steps are taken, so two runs with the same
        seed start alike and end close, not equal.
    progress : gets a line now and then, and one per member with its Dice on held-out fields

    Returns
    -------
    Path
        Of ``ensemble.yaml``.
    """
    begin = time.monotonic()
    deadline = begin + 0.96 * seconds  # the rest is for held-out fields and writing
    target = Path(folder)
    progress(f"training {members} members on simulated nuclei, about {seconds:.0f} s")
    networks = _new_networks(seed, members)
    with _one_thread_each(members), ThreadPoolExecutor(members) as pool:
        held_out = [_field((seed, _FOR_HELD_OUT, i), "ordinary") for i in range(_HELD_OUT)]
        jobs = [pool.submit(_train, network, seed, i, deadline) for i, network in enumerate(networks)]
        while wait(jobs, timeout=seconds / 5).not_done:
            progress(f"training: {time.monotonic() - begin:.0f} of {seconds:.0f} s")
        steps = [job.result() for job in jobs]
        scores = list(pool.map(lambda network: _dice(network, held_out), networks))
    entries = []
    for index, network in enumerate(networks):
        progress(
            f"member {index}: {steps[index]} steps, Dice {scores[index]:.3f} on {_HELD_OUT} held-out simulated fields"
        )
        entries.append(_save_member(network, target, f"member-{index}.safetensors"))
    return _save_ensemble(target, entries)


@contextmanager
def _one_thread_each(members: int) -> Iterator[None]:
    """Share the cores among the members, then give torch back the number of threads that it had.

    Members train side by side with one thread each, rather than one after the other with all cores: on an idle
    machine that is as fast, and beside another busy process OpenMP's barriers would make it 100 times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // members))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _new_networks(seed: int, members: int) -> list[torch.nn.Module]:
    """Untrained networks, each with its own random weights; torch's global generator is left as it was."""
    networks: list[torch.nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for index in range(members):
            torch.manual_seed(1000 * seed + index)
            network = smp.create_model("Unet", ENCODER, encoder_weights=None, in_channels=1, classes=2, **OPTIONS)
            networks.append(network.to(memory_format=torch.channels_last))
    return networks


def _field(seed: tuple[int, ...], quality: Quality) -> _Field:
    image, labels = simulate_field(seed, quality=quality)
    scaling = image_statistics(lambda: [image[None]], NORMALISATION, 1)
    return _Field(apply(image[None], scaling)[0], (labels > 0).astype(np.int64))


def _train(network: torch.nn.Module, seed: int, index: int, deadline: float) -> int:
    """Train member `index` until `deadline` (of the monotonic clock); the steps that it took."""
    begin = time.monotonic()
    rng = np.random.default_rng((seed, _FOR_TRAINING, index))
    fields = [_field((seed, _FOR_TRAINING, index, i), quality) for i, quality in enumerate(_TRAINING)]
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)
    overlap = smp.losses.DiceLoss(mode="multiclass", from_logits=True)
    steps = 0
    # The schedule follows the clock, so that it ends where the time does, on any machine.
    while steps == 0 or time.monotonic() < deadline:
        done = min(1.0, (time.monotonic() - begin) / max(1e-9, deadline - begin))
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * _schedule(done)
        images, truth = _batch(rng, fields)
        logits = network(images)
        loss = overlap(logits, truth) + functional.cross_entropy(logits, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
    network.eval()
    return steps


def _schedule(done: float) -> float:
    """Factor of the learning rate when a share `done` of the time has passed: warm-up, then a cosine to 0."""
    if done < _WARM_UP:
        return (done + 0.01) / (_WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _batch(rng: np.random.Generator, fields: list[_Field]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops, turned, flipped and varied: images (batch, 1, y, x) float32, truth (batch, y, x) int64."""
    images, truth = [], []
    for _ in range(_BATCH):
        field = fields[rng.integers(len(fields))]
        y, x = (rng.integers(size - _CROP + 1) for size in field.image.shape)
        turns, flip = int(rng.integers(4)), int(rng.integers(2))
        window = slice(y, y + _CROP), slice(x, x + _CROP)
        crop = np.rot90(field.image[window], turns)[:, :: 1 - 2 * flip]
        mask = np.rot90(field.foreground[window], turns)[:, :: 1 - 2 * flip]
        images.append(_vary(rng, crop))
        truth.append(mask)
    stacked = torch.from_numpy(np.stack(images)[:, None].astype(np.float32))
    return stacked.to(memory_format=torch.channels_last), torch.from_numpy(np.stack(truth))


def _vary(rng: np.random.Generator, crop: NDArray[np.float32]) -> NDArray[np.float64]:
    """Other exposures of the same crop: brightness, offset, gamma and a little more noise."""
    gamma = rng.uniform(0.7, 1.4)
    bent = np.sign(crop) * np.abs(crop) ** gamma
    return np.asarray(
        rng.uniform(0.7, 1.3) * bent + rng.normal(0, 0.03) + rng.normal(0, rng.uniform(0, 0.04), crop.shape)
    )


def _dice(network: torch.nn.Module, fields: list[_Field]) -> float:
    """Dice of the foreground over all pixels of `fields`, each seen whole."""
    both = total = 0
    for field in fields:
        height, width = field.image.shape
        padded = np.pad(field.image, [(0, -height % 32), (0, -width % 32)], mode="reflect")
        with torch.inference_mode():
            predicted = network(torch.from_numpy(padded)[None, None]).argmax(1)[0, :height, :width].numpy()
        both += int((predicted * field.foreground).sum())
        total += int(predicted.sum() + field.foreground.sum())
    return 2 * both / total if total else 1.0


def _save_member(network: torch.nn.Module, folder: Path, name: str) -> dict[str, object]:
    """Write the weights; the member's entry for ``ensemble.yaml``."""
    data = save_safetensors({key: value.contiguous() for key, value in network.state_dict().items()})
    storage.write_bytes(str(folder / name), data)
    return {
        "kind": "smp",
        "architecture": "Unet",
        "encoder": ENCODER,
        "options": OPTIONS,
        "weights": name,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _save_ensemble(folder: Path, entries: list[dict[str, object]]) -> Path:
    spec = EnsembleSpec.model_validate(
        {
            "format": FORMAT,
            "name": "quick-nuclei",
            "classes": [{"name": "background", "color": "#000000"}, {"name": "nucleus", "color": "#4daf4a"}],
            "input": {
                "channels": ["dna"],
                "pixel_size_um": PIXEL_SIZE_UM,
                "normalisation": NORMALISATION.model_dump(),
            },
            "activation": "softmax",
            "tile": 256,
            "overlap": 0.5,
            "augmentations": ["identity", "hflip", "vflip", "hvflip"],
            "members": entries,
        }
    )
    path = folder / "ensemble.yaml"
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False)
    storage.write_bytes(str(path), text.encode())
    return path
