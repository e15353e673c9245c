"""The class probabilities that a run kept of an image, window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from chorus.pipeline.core.fields import PROBABILITY
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.models import FailedImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import open_level, read_window

ReadProbability = Callable[[int, int, Window], NDArray[Any]]


def open_probability(result_url: str, classes: Sequence[str]) -> ReadProbability:
    """Return a function that reads (classes, y, x) probabilities, 0 to 1, of a window of a plane (t, z).

    Parameters
    ----------
    result_url : ``OUT/images/<name>``
    classes : names, background first

    Raises
    ------
    ImageError
        Where the run kept no probability of each class, as multi-label ensembles have none of the background.
    """
    image = next(iter(find_images([result_url], workers=1)))
    if isinstance(image, FailedImage):
        raise ImageError(image.message)
    names = [PROBABILITY.channel(name) for name in classes]
    if missing := [name for name in names if name not in image.channels]:
        raise ImageError(f"{result_url}: the run kept no {missing[0]}; run predict with --save probability")
    array, channels = open_level(image.url, image.levels[0].path), [image.channels.index(name) for name in names]
    return lambda t, z, window: read_window(array, image.axes, t, z, channels, window)
