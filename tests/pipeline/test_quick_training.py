"""A quick ensemble learns nuclei in the time it is given and is written as any other ensemble."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.ensemble import Ensemble, check_answer, read_ensemble
from pipeline.normalisation import apply, image_statistics
from pipeline.samples import simulate_field
from pipeline.training.quick import train_quick_ensemble

SECONDS = 40
MEMBERS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ensemble, list[str], float]:
    """An ensemble, what was said while it was trained, and the seconds that it took."""
    lines: list[str] = []
    begin = time.monotonic()
    folder = tmp_path_factory.mktemp("ensemble")
    path = train_quick_ensemble(folder, members=MEMBERS, seconds=SECONDS, seed=3, progress=lines.append)
    taken = time.monotonic() - begin
    return read_ensemble(str(path)), lines, taken


def foreground(ensemble: Ensemble, index: int, image: NDArray[np.uint16]) -> NDArray[np.bool_]:
    scaling = image_statistics(lambda: [image[None]], ensemble.spec.input.normalisation, 1)
    member = ensemble.load_member(index, torch.device("cpu"))
    with torch.inference_mode():
        logits = member(torch.from_numpy(apply(image[None], scaling))[None])
    return np.asarray(logits.argmax(1)[0].numpy() == 1)


def test_every_member_finds_nuclei_in_fields_that_it_has_not_seen(
    trained: tuple[Ensemble, list[str], float],
) -> None:
    ensemble, lines, _ = trained
    reported = [float(m[1]) for line in lines if (m := re.search(r"Dice (\d\.\d+)", line))]
    assert len(reported) == MEMBERS
    assert min(reported) > 0.85
    image, labels = simulate_field(12345, (512, 512))
    for index in range(MEMBERS):
        found = foreground(ensemble, index, image)
        assert 2 * (found & (labels > 0)).sum() / (found.sum() + (labels > 0).sum()) > 0.85


def test_training_ends_in_its_time(trained: tuple[Ensemble, list[str], float]) -> None:
    assert trained[2] < SECONDS * 1.15 + 5


def test_members_differ(trained: tuple[Ensemble, list[str], float]) -> None:
    image, _ = simulate_field(12345, (512, 512))
    assert not np.array_equal(foreground(trained[0], 0, image), foreground(trained[0], 1, image))


def test_what_is_written_is_an_ensemble_that_passes_every_check(
    trained: tuple[Ensemble, list[str], float],
) -> None:
    ensemble = trained[0]
    cpu = torch.device("cpu")
    for index in range(MEMBERS):
        check_answer(ensemble, index, ensemble.load_member(index, cpu), ensemble.spec.tile, cpu)
    assert [c.name for c in ensemble.classes] == ["background", "nucleus"]
    assert ensemble.spec.input.channels == ["dna"]
    assert all(len(member.sha256 or "") == 64 for member in ensemble.spec.members)
    assert {p.name for p in Path(ensemble.folder).iterdir()} == {
        "ensemble.yaml",
        *(f"member-{i}.safetensors" for i in range(MEMBERS)),
    }


def test_training_leaves_the_state_of_torch_as_it_was(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    train_quick_ensemble(tmp_path, members=1, seconds=1, seed=0, progress=lambda line: None)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
