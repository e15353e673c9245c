"""Fixtures that all rooms share: tiny ensembles with real networks, and real data where it is there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before Ray is imported anywhere: no token in the home folder, no usage report.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nothing of what a developer measured or converted outside.
os.environ["CHORUS_CACHE"] = str(Path(__file__).parents[1] / ".pytest_cache" / "chorus")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.making import write_ensemble
from tests.support.paths import SHARED

torch.set_num_threads(1)
settings.register_profile("chorus", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("chorus")


@pytest.fixture(scope="session", autouse=True)
def all_is_freed_at_the_end() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def what_stays_is_not_looked_through() -> None:
    """bioimageio.core collects garbage after each model: with all that is imported here a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real microscopy data beside the checkout, or where CHORUS_SHARED says; tests that need it skip without it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside the checkout: set CHORUS_SHARED to run on real data")
    return folder


@pytest.fixture(scope="session")
def ensemble_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three small U-Nets with random weights, two classes, tiles of 64."""
    return str(write_ensemble(tmp_path_factory.mktemp("ensemble"), members=3, tile=64))
