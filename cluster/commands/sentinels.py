"""Makes a sentinel of a labelled image, and measures those of an ensemble outside of a run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence

from chorus.cluster.evaluation.sentinels import comparable, dice_of, moved_error, rows_of, sentinel_url
from chorus.cluster.planning.image_statistics import measures_of
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.ensembles import weights as ensemble_weights
from chorus.pipeline.ensembles.editing import set_sentinel
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble, require_planes
from chorus.pipeline.ensembles.entries import Sentinel, SentinelSettings
from chorus.pipeline.errors import CutShortError, ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors

LARGEST = 64 << 20
"""Bytes of the largest image that becomes a sentinel: each run copies and processes it."""


def add_sentinel(
    ensemble_url: str,
    image_url: str,
    label: str,
    *,
    name: str | None = None,
    tolerance: float = 0.01,
    trust_code: bool = False,
) -> tuple[Ensemble, Sentinel]:
    """Predict a labelled image on the CPU, copy it beside ``ensemble.yaml``, and add it to the ensemble.

    The ensemble's own settings are used. A sentinel of the same name is replaced. Nothing is written before the image
    was predicted and compared.

    Raises
    ------
    RefusedError
        If there is no such image or it is too large, its label image is missing or does not fit, or the ensemble cannot
        have sentinels.
    """
    if not 0 < tolerance < 1:
        raise RefusedError(f"--tolerance {tolerance:g}: give a difference of Dice between 0 and 1, such as 0.01")
    ensemble = read_ensemble(ensemble_url, trust_code=trust_code)
    require_planes(ensemble, "`chorus ensemble sentinel`")
    storage.check_writable(ensemble.url)
    if measures_of(ensemble, ensemble.spec.edge, "dataset"):
        raise RefusedError(
            f"{ensemble.url}: a member normalises by statistics of all images of a run, so that what it says of one "
            f"image depends on the others; such an ensemble cannot have sentinels"
        )
    image = _one_image(image_url)
    (dice,) = measure(ensemble, [(storage.normalise(image.url), label)])
    name = name or image.name.replace(".ome.zarr", "").replace("/", "-")
    settings = resolve(ResultSettings(), ensemble)
    measured = SentinelSettings.model_validate(settings.model_dump(include=set(SentinelSettings.model_fields)))
    sentinel = Sentinel(
        name=name,
        image=_bring(storage.normalise(image.url), ensemble.folder, name),
        label=label,
        dice={key: round(value, 6) for key, value in dice.items()},
        tolerance=tolerance,
        measured=measured,
    )
    return set_sentinel(ensemble.url, sentinel).ensemble, sentinel


def compare_sentinels(ensemble: Ensemble) -> dict[str, dict[str, float]]:
    """Return Dice by class of each sentinel of `ensemble`, by name, measured now on the CPU of this machine.

    Raises
    ------
    RefusedError
        As `measure` does; and if one moved that was measured with the ensemble's own tiles and augmentations.
    """
    sentinels = ensemble.spec.sentinels
    if not sentinels:
        return {}
    measured = measure(ensemble, [(sentinel_url(sentinel, ensemble), sentinel.label) for sentinel in sentinels])
    settings = resolve(ResultSettings(), ensemble)
    rows = [row for sentinel, dice in zip(sentinels, measured, strict=True) for row in rows_of(sentinel, dice)]
    strict = {sentinel.name for sentinel in sentinels if comparable(sentinel, ensemble, settings)}
    if moved := [row for row in rows if row.moved and row.name in strict]:
        raise moved_error(ensemble, moved, {})
    return {sentinel.name: dice for sentinel, dice in zip(sentinels, measured, strict=True)}


def measure(ensemble: Ensemble, images: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    """Return Dice by foreground class of images, predicted with the ensemble's own settings.

    Parameters
    ----------
    images : URL and name of the label image inside

    Raises
    ------
    RefusedError
        If an image cannot be processed, or its label image is missing or does not fit.
    CutShortError
        If the process is told to stop.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = storage.join(folder, "out")
        outcome = predict(
            PredictRequest(
                sources=[url for url, _ in images],
                ensemble=ensemble.url,
                out=out,
                settings=ResultSettings(save=[]),
                run=RunSettings(executor="serial", trust_code=ensemble.trust_code, thumbnails=False, sentinels="skip"),
            ),
            Silent(),
            judge=False,
        )
        if outcome.state == "interrupted":
            raise CutShortError(outcome.message)
        failed = [row.message for row in outcome.rows if row.status == "failed"]
        if failed:
            raise RefusedError(failed[0])
        try:
            return [dice_of(out, url, label, ensemble) for url, label in images]
        except ImageError as error:
            raise RefusedError(str(error)) from error


def _bring(url: str, folder: str, name: str) -> str:
    """Copy an image into `folder`, replacing an older one of that name; return its path there.

    An image that is in `folder` already is not copied.
    """
    if url.startswith(f"{folder}/"):
        return url.removeprefix(f"{folder}/")
    path = storage.join("sentinels", re.sub(r"[^A-Za-z0-9_.-]+", "-", name) + ".ome.zarr")
    target = storage.join(folder, path)
    with storage_errors(target):
        remove_folder(target)
        fs, root = storage.filesystem(url)
        for file in fs.find(root):
            storage.write_bytes(storage.join(target, file.removeprefix(root)), fs.cat_file(file))
    return path


def _one_image(url: str) -> SourceImage:
    """Return the image at `url`; raise RefusedError if it cannot become a sentinel."""
    if storage.is_web(url):
        raise RefusedError(f"{url}: a folder on the web cannot be copied; download the image first")
    images = list(find_images([url]))
    if len(images) > 1:
        raise RefusedError(
            f"{url}: holds {len(images)} images; give one, such as {storage.join(images[0].root, images[0].path)}"
        )
    if isinstance(images[0], FailedImage):
        raise RefusedError(images[0].message)
    size = ensemble_weights.size(images[0].url) or 0
    if size > LARGEST:
        raise RefusedError(
            f"{url}: takes {size >> 20} MiB, and a sentinel at most {LARGEST >> 20}, as every run processes it; cut "
            f"out a part of the image"
        )
    return images[0]
