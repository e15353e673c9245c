"""What tests of adaptive effort share: bounds that leave something to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chorus.cluster.commands.effort import tile_efforts
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.pipeline.ensembles.ensemble import read_ensemble


def half_of_the_tiles(ensemble: Path, image: Path, changed: float) -> list[float]:
    """Factors that stop about half of an image's tiles at each look."""
    read = read_ensemble(str(ensemble))
    (tiles,) = tile_efforts(read, resolve(ResultSettings(), read), [str(image)], lambda text: None)
    looks = np.array([tile.doubtful for tile in tiles])
    first, left = np.median(looks[:, 0]), looks[looks[:, 0] > np.median(looks[:, 0])]
    return [changed / float(share) for share in (first, *np.median(left[:, 1:], axis=0))]
