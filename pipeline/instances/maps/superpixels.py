"""Objects by boundaries alone, as PlantSeg makes them: a watershed of the distance to boundaries, then agglomeration.

The watershed makes more objects than there are; neighbours are united while the mean probability of a boundary between
them is low.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chorus.pipeline.instances.maps.seeded import flooded, smoothed


@dataclass(frozen=True)
class SuperpixelSettings:
    """Settings of objects by boundaries; defaults are those of PlantSeg's ``dt_watershed`` and ``gasp``.

    Attributes
    ----------
    boundary_threshold : pixels of a higher probability are boundary
    sigma_seeds, sigma_weights : standard deviation in pixels of the Gaussians that smooth the distance to boundaries,
        and the boundaries over which superpixels grow
    superpixel_size : smaller superpixels are given to their neighbours, pixels
    beta : neighbours are united whose mean probability of a boundary between them is less
    """

    boundary_threshold: float = 0.5
    sigma_seeds: float = 1.0
    sigma_weights: float = 2.0
    superpixel_size: int = 100
    beta: float = 0.5


def boundary_objects(
    boundaries: NDArray[np.floating], mask: NDArray[np.bool_], settings: SuperpixelSettings, anisotropy: float = 1.0
) -> NDArray[np.int32]:
    """Label objects by their boundaries alone.

    Parameters
    ----------
    boundaries : (z, y, x) probability of a boundary
    mask : (z, y, x) bool, where objects may be
    anisotropy : distance of planes, in pixels

    Returns
    -------
    NDArray[np.int32]
        (z, y, x), objects 1 to n, 0 outside the mask.

    References
    ----------
    Wolny et al., Accurate and versatile 3D segmentation of plant tissues at cellular resolution, eLife 9:e57613 (2020).
    """
    probabilities = smoothed(boundaries, 0)
    return united(superpixels(probabilities, mask, settings, anisotropy), probabilities, settings.beta)


def superpixels(
    boundaries: NDArray[np.float32], mask: NDArray[np.bool_], settings: SuperpixelSettings, anisotropy: float = 1.0
) -> NDArray[np.int32]:
    """Divide a box by a watershed from the maxima of the distance to the next boundary.

    Parameters
    ----------
    boundaries : (z, y, x) probability of a boundary
    mask : (z, y, x) bool, where superpixels may be
    anisotropy : distance of planes, in pixels

    Returns
    -------
    NDArray[np.int32]
        (z, y, x), superpixels 1 to n, 0 outside the mask.

    References
    ----------
    Beier et al., Multicut brings automated neurite segmentation closer to human performance, Nature Methods 14:101
    (2017); ``elf.segmentation.watershed.distance_transform_watershed``.
    """
    inside = mask & (boundaries <= settings.boundary_threshold)
    if not inside.any():
        return np.zeros(mask.shape, np.int32)
    distance = ndimage.distance_transform_edt(inside, sampling=(anisotropy, 1, 1))
    if inside.all():  # no boundary, so no distance to it
        distance = np.ones(inside.shape)
    distance = smoothed(distance, settings.sigma_seeds)
    seeds = inside & (distance == ndimage.maximum_filter(distance, 3, mode="nearest"))
    markers, _ = ndimage.label(seeds, np.ones((3, 3, 3)))
    heights = smoothed(boundaries, settings.sigma_weights)
    labels = flooded(heights, markers, mask)
    small = np.bincount(labels.ravel()) < settings.superpixel_size
    small[0] = False
    if small.any() and not small[1:].all():
        labels = flooded(heights, np.where(small, 0, np.arange(len(small), dtype=np.int32))[labels], mask)
    return labels


def united(labels: NDArray[np.int32], boundaries: NDArray[np.float32], beta: float) -> NDArray[np.int32]:
    """Unite neighbours, the pair of the lowest mean probability of a boundary first, while that is less than `beta`.

    The mean is over the pairs of pixels, one of each, that touch by a side.

    Parameters
    ----------
    labels : (z, y, x), superpixels 1 to n, 0 for background, which stays
    boundaries : (z, y, x) probability of a boundary

    Returns
    -------
    NDArray[np.int32]
        (z, y, x), objects 1 to n, 0 for background.

    References
    ----------
    Bailoni et al., GASP, a generalized framework for agglomerative clustering of signed graphs, CVPR 2022: average
    linkage without constraints.
    """
    from skimage.graph import RAG, merge_hierarchical

    if not labels.any():
        return labels
    graph = RAG()  # type: ignore[no-untyped-call]
    for label in np.unique(labels[labels > 0]).tolist():
        graph.add_node(label, labels=[label])  # type: ignore[no-untyped-call]
    for (a, b), weight, count in zip(*_borders(labels, boundaries), strict=True):
        graph.add_edge(a, b, weight=weight, count=count)  # type: ignore[no-untyped-call]
    merged = merge_hierarchical(  # type: ignore[no-untyped-call]
        labels, graph, thresh=beta, rag_copy=False, in_place_merge=True, merge_func=_nothing, weight_func=_mean
    )
    numbers = merged + 1
    numbers[labels == 0] = 0
    return np.asarray(numbers, np.int32)


def _borders(
    labels: NDArray[np.int32], boundaries: NDArray[np.float32]
) -> tuple[list[list[int]], list[float], list[int]]:
    """Return the pairs of neighbours, their mean probability of a boundary and the number of touching pixels."""
    pairs, values = [], []
    for axis in range(labels.ndim):
        first, second = ([slice(None)] * labels.ndim for _ in range(2))
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = labels[tuple(first)], labels[tuple(second)]
        touching = (a != b) & (a > 0) & (b > 0)
        pairs.append(np.sort(np.stack([a[touching], b[touching]], axis=1), axis=1))
        means = (boundaries[tuple(first)][touching].astype(np.float64) + boundaries[tuple(second)][touching]) / 2
        values.append(means)
    found, index = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    counts = np.bincount(index.ravel(), minlength=len(found))
    sums = np.bincount(index.ravel(), np.concatenate(values), minlength=len(found))
    return found.tolist(), (sums / np.maximum(counts, 1)).tolist(), counts.tolist()


def _nothing(graph: Any, source: int, target: int) -> None:
    """Keep nothing of a node that is united with another."""


def _mean(graph: Any, source: int, target: int, neighbour: int) -> dict[str, float]:
    """Return the edge to a neighbour of two nodes that are united: the mean over the pixels of both edges."""
    edges = [graph[one][neighbour] for one in (source, target) if graph.has_edge(one, neighbour)]
    count = sum(edge["count"] for edge in edges)
    return {"count": count, "weight": sum(edge["count"] * edge["weight"] for edge in edges) / count}
