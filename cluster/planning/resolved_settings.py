"""Settings of a run in which every choice of the ensemble or the device is filled in."""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import Field

from chorus.cluster.planning.settings import CUTS, Edge, Overlap, ResultSettings
from chorus.pipeline.backends.choice import Backend, check_backend
from chorus.pipeline.backends.choosing import Workload, choose
from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.augmentation import refused
from chorus.pipeline.core.fields import FIELDS, SAMPLES, in_order
from chorus.pipeline.core.geometry import TileSize, of_each, tile_shape
from chorus.pipeline.core.outputs import EFFORT, FLOWS, Outputs
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.ensembles.tile_rules import answer_wrong, tiles_wrong
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.inference.posterior_builder import InferenceSettings


class ResolvedSettings(ResultSettings):
    """Result settings in which every choice of the ensemble or the device is filled in.

    `bound` says which tiles are done after the first round; None with full effort. `answer` is the shape of members'
    answers.
    """

    tile: Edge | tuple[Edge, Edge, Edge]
    overlap: Overlap | tuple[Overlap, Overlap, Overlap]
    region: int = Field(ge=64)
    chunk: int = Field(ge=16)
    augmentations: list[str]
    batch: int
    backend: Backend
    bound: EffortBound | None = None
    answer: AnswerShape = Field(default=AnswerShape(), exclude_if=lambda shape: shape == AnswerShape())

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Return the pixels of a tile on each axis."""
        return tile_shape(self.tile)


def resolve(settings: ResultSettings, ensemble: Ensemble) -> ResolvedSettings:
    """Fill in what the ensemble or the device decides; raise RefusedError where a setting does not fit them."""
    spec = ensemble.spec
    if spec.input.axes == "zyx":
        _planes_only(settings, ensemble)
    rescale_factor(settings, ensemble)
    given = outputs_of(settings, ensemble)
    for field in (FIELDS[name] for name in settings.save):
        if not field.given(given) and field.role is not EFFORT:
            raise RefusedError(
                f"{ensemble.url}: its members give no {field.role.name}; leave `{field.name}` out of --save"
            )
    if settings.diameter == "auto" and (settings.volumes or spec.input.axes == "zyx"):
        raise RefusedError("--diameter auto: objects in volumes are not measured beforehand; give --diameter in pixels")
    if settings.volumes and FLOWS not in ensemble.outputs:
        raise RefusedError(f"{ensemble.url}: its members give no flows, which --volumes needs; leave --volumes out")
    unmerged = [name for name in settings.save if FIELDS[name].symmetry in ("rays", "offsets")]
    if settings.volumes and unmerged:
        raise RefusedError(
            f"{ensemble.url}: `{unmerged[0]}` of planes in three directions have no mean; leave it out of --save, or "
            "leave --volumes out"
        )
    tile, overlap, augmentations = _tiles(settings, ensemble)
    if reason := refused(ensemble.outputs, tuple(augmentations), spec.input.axes):
        raise RefusedError(f"{ensemble.url}: {reason}; leave it out of --augment")
    workload = Workload(tile, len(augmentations), settings.precision, torch.device(settings.device))
    backend, batch = settings.backend, settings.batch or workload.batch
    if backend == "auto":
        backend, batch = choose(ensemble, workload, settings.batch)
    check_backend(backend, settings.precision, settings.device)
    filled = {"tile": tile, "overlap": overlap, "augmentations": augmentations, "batch": batch, "backend": backend}
    if wrong := answer_wrong(spec.answer, spec.input.axes, of_each(tile, len(spec.input.axes)), augmentations):
        raise RefusedError(f"{ensemble.url}: answer: {wrong}; correct --tile or --augment")
    shape = {"answer": spec.answer_shape.model_dump()}
    resolved = ResolvedSettings.model_validate(
        settings.model_dump() | filled | shape | region_edges(settings, ensemble)
    )
    return _adaptive(resolved, ensemble) if settings.effort == "adaptive" else _full(resolved)


def _tiles(settings: ResultSettings, ensemble: Ensemble) -> tuple[TileSize, float | tuple[float, ...], list[str]]:
    """Return size and overlap of tiles, and augmentations, of volumes one number for each axis."""
    spec = ensemble.spec
    tile = spec.tile if settings.tile is None else settings.tile
    overlap = spec.overlap if settings.overlap is None else settings.overlap
    augmentations = settings.augmentations or spec.augmentations
    if wrong := tiles_wrong(spec.input.axes, tile, overlap, augmentations):
        name, reason = wrong
        raise RefusedError(f"--{'augment' if name == 'augmentations' else name}: {reason}")
    if spec.input.axes == "yx":
        return tile, overlap, augmentations
    return of_each(tile, 3), of_each(overlap, 3), augmentations


def region_edges(settings: ResultSettings, ensemble: Ensemble) -> dict[str, int | None]:
    """Return the edges of regions and chunks; raise RefusedError where they do not go with the ensemble's axes."""
    axes = ensemble.spec.input.axes
    if axes == "yx" and (settings.region_depth or settings.chunk_depth):
        name = "region" if settings.region_depth else "chunk"
        raise RefusedError(f"{ensemble.url}: its members take planes; leave out --{name}-depth")
    usual = asdict(CUTS[axes])
    edges = {name: getattr(settings, name) or value for name, value in usual.items()}
    for region, chunk in (("region", "chunk"), ("region_depth", "chunk_depth")):
        if axes == "zyx" and getattr(settings, chunk) is None:
            # A block smaller than the usual chunk is one chunk.
            edges[chunk] = min(edges[chunk], edges[region])
        if edges[region] and edges[region] % edges[chunk]:
            names = [f"{name.replace('_', '-')} {edges[name]}" for name in (region, chunk)]
            raise RefusedError(f"--{names[0]} is not a multiple of --{names[1]}")
    return edges


def _planes_only(settings: ResultSettings, ensemble: Ensemble) -> None:
    """Raise RefusedError where a setting does not go together with members that take volumes."""
    url = ensemble.url
    if settings.volumes:
        raise RefusedError(
            f"{url}: its members take volumes themselves, and --volumes makes volumes of what members say of planes; "
            "leave --volumes out"
        )
    if settings.effort == "adaptive":
        raise RefusedError(f"{url}: its members take volumes, which get full effort; use --effort full")
    if settings.diameter is not None:
        raise RefusedError(
            f"{url}: its members take volumes, whose pixel sizes decide how they are resampled; leave --diameter out"
        )


def _adaptive(settings: ResolvedSettings, ensemble: Ensemble) -> ResolvedSettings:
    """Add the ensemble's bound, which goes into the record of the run, and the map of the effort per tile."""
    bound = ensemble.spec.effort
    if bound is None:
        raise RefusedError(
            f"{ensemble.url}: --effort adaptive needs a bound that was measured with the ensemble; make one with "
            f"`chorus ensemble effort`, or use --effort full"
        )
    if bound.ensemble != ensemble.hash:
        raise RefusedError(
            f"{ensemble.url}: its bound for --effort adaptive was measured before the ensemble changed; measure "
            f"it again with `chorus ensemble effort`, or use --effort full"
        )
    for name in ("tile", "overlap", "augmentations"):
        if getattr(settings, name) != getattr(bound, name):
            raise RefusedError(
                f"{ensemble.url}: --effort adaptive was measured with {name} {getattr(bound, name)}, not "
                f"{getattr(settings, name)}; measure again with `chorus ensemble effort`, or leave out the option "
                "that changes it"
            )
    if settings.volumes:
        raise RefusedError("--effort adaptive: results of volumes get full effort; leave --effort or --volumes out")
    save = in_order({*settings.save, SAMPLES.name}) if settings.save else []
    return settings.model_copy(update={"bound": bound, "save": save})


def _full(settings: ResolvedSettings) -> ResolvedSettings:
    if SAMPLES.name in settings.save:
        raise RefusedError(f"--save {SAMPLES.name}: is the same everywhere with full effort; use --effort adaptive")
    return settings


def inference_settings(settings: ResolvedSettings, ensemble: Ensemble) -> InferenceSettings:
    """Return the settings that the engine needs."""
    return InferenceSettings(
        outputs=ensemble.outputs,
        multilabel=ensemble.multilabel,
        tile=settings.tile_shape,
        augmentations=tuple(settings.augmentations),
        batch=settings.batch,
        precision=settings.precision,
        effort=settings.bound,
        answer=settings.answer,
    )


def rescale_factor(settings: ResultSettings, ensemble: Ensemble) -> float | None:
    """Return the factor from the image's object diameter to that of the training data; None: the pixel size decides."""
    if settings.diameter is None:
        return None
    trained = ensemble.spec.input.diameter_px
    if trained is None:
        raise RefusedError(
            f"{ensemble.url}: --diameter needs `input.diameter_px`, the diameter of the objects that its members were "
            "trained on; add it (30 for Cellpose) or leave out --diameter"
        )
    return None if settings.diameter_px is None else trained / settings.diameter_px


def outputs_of(settings: ResultSettings, ensemble: Ensemble) -> Outputs:
    """Return the outputs that the results of a run may hold."""
    axes = "zyx" if settings.volumes == "all" else ensemble.spec.input.axes
    samples = len(ensemble.spec.members) * len(settings.augmentations or ensemble.spec.augmentations)
    outputs = ensemble.outputs.along(axes)
    return outputs.sampled(samples) if settings.effort == "adaptive" else outputs
