"""The posterior by the letter, in float64 and plain loops: what the fast implementation is checked against.

Shares no code with `pipeline`. Every step is written from the text of the design: the tile grid, the mirroring, the
augmentations, the Gaussian window, the blending, the variances and the scores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Member = Callable[[Array], Array]
"""(channels, tile, tile) float64 pixels to (outputs, tile, tile) float64 logits (or probabilities)."""
Encoder = Callable[[Array], Array]
"""(channels, tile, tile) float64 pixels to (features, y, x) float64, an encoder's last stage."""

FORWARD: dict[str, Callable[[Array], Array]] = {
    "identity": lambda a: a,
    "hflip": lambda a: a[:, :, ::-1],
    "vflip": lambda a: a[:, ::-1, :],
    "hvflip": lambda a: a[:, ::-1, ::-1],
    "rot90": lambda a: np.rot90(a, 1, axes=(1, 2)),
    "rot180": lambda a: np.rot90(a, 2, axes=(1, 2)),
    "rot270": lambda a: np.rot90(a, 3, axes=(1, 2)),
    "transpose": lambda a: a.swapaxes(1, 2),
    "antitranspose": lambda a: a.swapaxes(1, 2)[:, ::-1, ::-1],
}
"""What each augmentation does to (channels, y, x); rotations are counter-clockwise as the plane is displayed."""

INVERSE = {name: name for name in FORWARD} | {"rot90": "rot270", "rot270": "rot90"}


@dataclass(frozen=True)
class ReferencePosterior:
    """What the ensemble says about an image.

    "Classes" of the maps and of `probability` are all classes, background first; where the ensemble is multi-label
    (sigmoid with several outputs) they are the foreground classes only, one per output.

    Attributes
    ----------
    probability : (classes, H, W), mean over members and augmentations, blended
    epistemic, aleatoric : (H, W), variances within each tile, mean over classes, blended
    uncertainty : (H, W), predictive variance, their sum
    entropy : (H, W), of `probability` as a fraction of the largest one; multi-label: mean over the classes' own
    labels : (H, W) int, predicted class, 0 is background
    masks : (foreground classes, H, W) bool, where each foreground class is predicted
    member_labels : (members, H, W) int, the same as `labels` of each member's own blended mean probability
    member_masks : (members, foreground classes, H, W) bool
    margin : (H, W), by how much a probability must change before the label does: the best less the second-best;
        where the ensemble is multi-label also the distance from 0.5
    U : mean uncertainty over predicted foreground; None where there is none
    mean_epistemic, mean_aleatoric : its two parts
    mean_entropy : over predicted foreground; None where there is none
    pairwise_dice : per foreground class, mean over pairs of members; None with a single member
    minimum_pairwise_dice : per foreground class, of the pair that agrees least
    area_fraction : per foreground class, predicted pixels over all pixels
    flows : (2, H, W), mean (dy, dx) over members and augmentations, blended; (0, H, W) without
    flow_variance : (1, H, W), circular variance of their directions within each tile, blended; (0, H, W) without
    mean_flow_variance : over predicted foreground; None where there is none, and without flows
    """

    probability: Array
    epistemic: Array
    aleatoric: Array
    uncertainty: Array
    entropy: Array
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    member_labels: NDArray[np.int64]
    member_masks: NDArray[np.bool_]
    margin: Array
    U: float | None
    mean_epistemic: float | None
    mean_aleatoric: float | None
    mean_entropy: float | None
    pairwise_dice: list[float | None]
    minimum_pairwise_dice: list[float | None]
    area_fraction: list[float]
    flows: Array
    flow_variance: Array
    mean_flow_variance: float | None


def reference_posterior(
    image: Array,
    members: Sequence[Member],
    tile: int,
    overlap: float,
    augmentations: Sequence[str],
    activation: str,
    *,
    flows: bool = False,
) -> ReferencePosterior:
    """The posterior of `image`, (channels, H, W) float64, by `members` on tiles of `tile` pixels.

    `augmentations` are names of FORWARD; `activation` is softmax, sigmoid or none; with `flows` the members' last two
    outputs are vectors (dy, dx).
    """
    _, height, width = image.shape
    window = gaussian_window(tile)
    weights = np.zeros((height, width))
    sums: dict[str, Array] = {}

    for y0 in tile_starts(height, tile, overlap):
        for x0 in tile_starts(width, tile, overlap):
            maps = tile_maps(mirrored_tile(image, y0, x0, tile), members, augmentations, activation, 2 * flows)
            y, y_end = max(y0, 0), min(y0 + tile, height)
            x, x_end = max(x0, 0), min(x0 + tile, width)
            inside = np.s_[..., y - y0 : y_end - y0, x - x0 : x_end - x0]
            weights[y:y_end, x:x_end] += window[inside]
            for name, values in maps.items():
                total = sums.setdefault(name, np.zeros((*values.shape[:-2], height, width)))
                total[..., y:y_end, x:x_end] += window[inside] * values[inside]

    blended = {name: total / weights for name, total in sums.items()}
    outputs = len(members[0](mirrored_tile(image, 0, 0, tile))) - 2 * flows
    return with_scores(blended, multilabel=activation == "sigmoid" and outputs > 1)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles start on an axis: from the image's edge on, a step apart, until they cover it."""
    step = max(1, round(tile * (1 - overlap)))
    starts = [0]
    while starts[-1] + tile < length:
        starts.append(starts[-1] + step)
    return starts


def mirrored(index: int, length: int) -> int:
    """The pixel that is seen at `index`: outside the image mirrored without repeating the edge, bouncing."""
    if length == 1:
        return 0
    while index < 0 or index >= length:
        if index < 0:
            index = -index
        if index >= length:
            index = 2 * (length - 1) - index
    return index


def mirrored_tile(image: Array, y0: int, x0: int, tile: int) -> Array:
    """(channels, tile, tile) pixels from (y0, x0) on."""
    channels, height, width = image.shape
    pixels = np.empty((channels, tile, tile))
    for i in range(tile):
        for j in range(tile):
            pixels[:, i, j] = image[:, mirrored(y0 + i, height), mirrored(x0 + j, width)]
    return pixels


def gaussian_window(tile: int) -> Array:
    """(tile, tile) weights: sigma = tile / 8 about the centre, maximum 1, zeros lifted to the smallest positive."""
    sigma = tile / 8
    centre = (tile - 1) / 2
    window = np.empty((tile, tile))
    for i in range(tile):
        for j in range(tile):
            window[i, j] = math.exp(-((i - centre) ** 2 + (j - centre) ** 2) / (2 * sigma**2))
    window /= window.max()
    window[window == 0] = window[window > 0].min()
    return window


def probabilities(logits: Array, activation: str) -> Array:
    """(outputs, y, x) logits to (classes, y, x) probabilities; a single output is the foreground of two classes."""
    if activation == "softmax":
        exponentials: Array = np.exp(logits - logits.max(axis=0))
        normalised: Array = exponentials / exponentials.sum(axis=0)
        return normalised
    found = 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else logits
    return np.stack([1 - found[0], found[0]]) if len(found) == 1 else found


def turned_back(name: str, vectors: Array) -> Array:
    """(2, y, x) vectors (dy, dx) seen in an augmented tile, as they are in the plane.

    A step down or to the right in the augmented tile is a step in the plane, which the coordinates tell.
    """
    y, x = (FORWARD[name](axis[None])[0] for axis in np.indices(vectors.shape[1:]))
    down = y[1, 0] - y[0, 0], x[1, 0] - x[0, 0]
    right = y[0, 1] - y[0, 0], x[0, 1] - x[0, 0]
    turned = np.stack([vectors[0] * down[k] + vectors[1] * right[k] for k in range(2)])
    return FORWARD[INVERSE[name]](turned)


def tile_maps(
    pixels: Array, members: Sequence[Member], augmentations: Sequence[str], activation: str, vectors: int = 0
) -> dict[str, Array]:
    """What the T x M samples of one tile say: Eq. 1, 3 and 4 of deepflash2; the last outputs may be `vectors`."""
    samples = []  # [member][augmentation]: (classes, tile, tile)
    flows: list[Array] = []
    for member in members:
        of_member = []
        for name in augmentations:
            answer = member(FORWARD[name](pixels).copy())
            p = probabilities(answer[: len(answer) - vectors], activation)
            of_member.append(FORWARD[INVERSE[name]](p))
            if vectors:
                flows.append(turned_back(name, answer[-vectors:]))
        samples.append(of_member)
    p = np.array(samples)  # (members, augmentations, classes, tile, tile)

    mean = p.mean(axis=(0, 1))
    aleatoric = (p - p**2).mean(axis=(0, 1))
    epistemic = (p**2).mean(axis=(0, 1)) - mean**2
    return {
        "probability": mean,
        "member_probability": p.mean(axis=1),
        "aleatoric": aleatoric.mean(axis=0),
        "epistemic": epistemic.mean(axis=0),
        "uncertainty": (mean * (1 - mean)).mean(axis=0),
        "flows": np.mean(flows, axis=0) if flows else np.zeros((0, *pixels.shape[1:])),
        "flow_variance": np.array([circular_variance(flows)] if flows else []).reshape(-1, *pixels.shape[1:]),
    }


def circular_variance(flows: Sequence[Array]) -> Array:
    """(y, x): 1 less the length of the mean direction of vectors (2, y, x); what has no direction adds nothing.

    From the angles: the mean of their sines and of their cosines.
    """
    variance = np.empty(flows[0].shape[1:])
    for i, j in np.ndindex(*variance.shape):
        angles = [
            math.atan2(dy, dx)
            for dy, dx in (flow[:, i, j].tolist() for flow in flows)
            if math.isfinite(dy) and math.isfinite(dx) and (dy, dx) != (0, 0)
        ]
        sine, cosine = sum(map(math.sin, angles)) / len(flows), sum(map(math.cos, angles)) / len(flows)
        variance[i, j] = 1 - math.hypot(sine, cosine)
    return variance


def decide(probability: Array, multilabel: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
    """Labels (H, W), masks (foreground classes, H, W) and margin (H, W) of (classes, H, W) probabilities."""
    best = probability.argmax(axis=0)
    ranked = np.sort(probability, axis=0)
    margin = ranked[-1] - ranked[-2]
    if not multilabel:
        masks = np.array([best == k for k in range(1, len(probability))])
        return best, masks, margin
    found = ranked[-1] >= 0.5
    to_threshold = np.abs(ranked[-1] - 0.5)
    labels = np.where(found, best + 1, 0)
    return labels, probability >= 0.5, np.where(found, np.minimum(margin, to_threshold), to_threshold)


def with_scores(blended: dict[str, Array], multilabel: bool) -> ReferencePosterior:
    """Decisions and image scores from the blended maps."""
    labels, masks, margin = decide(blended["probability"], multilabel)
    decisions = [decide(probability, multilabel) for probability in blended["member_probability"]]
    member_masks = np.array([decision[1] for decision in decisions])
    foreground = masks.any(axis=0)
    entropy = predictive_entropy(blended["probability"], multilabel)
    dices = [pairwise_dices(member_masks[:, k]) for k in range(len(masks))]

    def mean_over_foreground(values: Array) -> float | None:
        return float(values[foreground].mean()) if foreground.any() else None

    return ReferencePosterior(
        probability=blended["probability"],
        epistemic=blended["epistemic"],
        aleatoric=blended["aleatoric"],
        uncertainty=blended["uncertainty"],
        entropy=entropy,
        labels=labels,
        masks=masks,
        member_labels=np.array([decision[0] for decision in decisions]),
        member_masks=member_masks,
        margin=margin,
        U=mean_over_foreground(blended["uncertainty"]),
        mean_epistemic=mean_over_foreground(blended["epistemic"]),
        mean_aleatoric=mean_over_foreground(blended["aleatoric"]),
        mean_entropy=mean_over_foreground(entropy),
        pairwise_dice=[sum(pairs) / len(pairs) if pairs else None for pairs in dices],
        minimum_pairwise_dice=[min(pairs) if pairs else None for pairs in dices],
        area_fraction=[float(mask.mean()) for mask in masks],
        flows=blended["flows"],
        flow_variance=blended["flow_variance"],
        mean_flow_variance=mean_over_foreground(blended["flow_variance"][0]) if len(blended["flow_variance"]) else None,
    )


def predictive_entropy(probability: Array, multilabel: bool) -> Array:
    """(H, W): -sum_k p_k ln p_k / ln K of (K, H, W); multi-label the mean over classes of that of (p, 1 - p)."""

    def of(distribution: Sequence[float]) -> float:
        return -sum(p * math.log(p) for p in distribution if p > 0) / math.log(len(distribution))

    entropy = np.empty(probability.shape[1:])
    for i, j in np.ndindex(*entropy.shape):
        p = probability[:, i, j].tolist()
        entropy[i, j] = sum(of([q, 1 - q]) for q in p) / len(p) if multilabel else of(p)
    return entropy


def patch_maximum(values: Array, edge: int) -> float | None:
    """The largest mean of a patch of `edge` x `edge` pixels from the origin on; cut ones count from a quarter on."""
    means = []
    for y in range(0, values.shape[0], edge):
        for x in range(0, values.shape[1], edge):
            patch = values[y : y + edge, x : x + edge]
            if patch.size >= edge * edge / 4:
                means.append(float(patch.mean()))
    return max(means) if means else None


def pairwise_dices(masks: NDArray[np.bool_]) -> list[float]:
    """Of each pair of (members, H, W) masks 2 |A and B| / (|A| + |B|); two empty ones agree."""
    dices = []
    for a, b in itertools.combinations(masks, 2):
        sizes = int(a.sum()) + int(b.sum())
        dices.append(2 * int((a & b).sum()) / sizes if sizes else 1.0)
    return dices


def reference_features(
    image: Array, encoders: Sequence[Encoder], tile: int, overlap: float, view: str = "identity"
) -> Array:
    """What the encoders make of an image, one after the other: mean over the positions of a tile, and over all tiles.

    `view` is the augmentation that is looked at.
    """
    of_tiles = []
    for y0 in tile_starts(image.shape[1], tile, overlap):
        for x0 in tile_starts(image.shape[2], tile, overlap):
            pixels = FORWARD[view](mirrored_tile(image, y0, x0, tile)).copy()
            stages = [encoder(pixels) for encoder in encoders]
            of_tiles.append([channel.mean() for stage in stages for channel in stage])
    mean: Array = np.array(of_tiles).mean(axis=0)
    return mean
