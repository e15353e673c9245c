"""Labels and class masks of probabilities, on their device."""

from __future__ import annotations

import torch


def predicted_labels(probability: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Return the predicted class per pixel.

    The argmax, the first class if several are equal. Multi-label: the most probable foreground class if it reaches 0.5,
    background elsewhere.

    Parameters
    ----------
    probability : (classes, ..., y, x), 0 to 1; without background if multi-label
    multilabel : whether classes are independent of each other

    Returns
    -------
    torch.Tensor
        (..., y, x) int32, 0 is background.

    References
    ----------
    Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 2.
    """
    best = probability[0]
    label = torch.full_like(best, 1 if multilabel else 0, dtype=torch.int32)
    for k in range(1, probability.shape[0]):
        better = probability[k] > best
        best = torch.where(better, probability[k], best)
        label = torch.where(better, k + 1 if multilabel else k, label)
    if multilabel:
        label = torch.where(best >= 0.5, label, 0)
    return label


def class_masks(probability: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Return which classes a pixel belongs to.

    Parameters
    ----------
    probability : (classes, ..., y, x), 0 to 1; without background if multi-label
    multilabel : whether classes are independent of each other

    Returns
    -------
    torch.Tensor
        (..., y, x) int32: the predicted label; if multi-label, bit k - 1 is set for each class k that reaches 0.5.
    """
    if not multilabel:
        return predicted_labels(probability, multilabel=False)
    masks = torch.zeros_like(probability[0], dtype=torch.int32)
    for k in range(probability.shape[0]):
        masks |= (probability[k] >= 0.5).to(torch.int32) << k
    return masks
