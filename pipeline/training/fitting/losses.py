"""Loss functions: a loss of the classes, and one of the flows if there are any."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from chorus.pipeline.training.settings import LossName

_TVERSKY = {"alpha": 0.3, "beta": 0.7}  # false negatives weigh more than false positives, as in Salehi et al.

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Loss of outputs (batch, classes + flows, y, x), classes (batch, y, x) int64, and flows (batch, 2, y, x) or None."""


def new_loss(name: LossName) -> Loss:
    """Return the loss with this name; with flows, half their mean squared error is added, as in Cellpose.

    References
    ----------
    Dice: Milletari et al., 3DV 2016. Focal: Lin et al., ICCV 2017. Tversky: Salehi et al., MLMI 2017. Lovasz: Berman
    et al., CVPR 2018. Flows: Stringer et al., Nature Methods 18:100 (2021), Methods; ``cellpose.train``.
    """
    of_classes = _of_classes(name)

    def loss(outputs: torch.Tensor, classes: torch.Tensor, flows: torch.Tensor | None) -> torch.Tensor:
        outputs = outputs.float()
        if flows is None:
            return of_classes(outputs, classes)
        return of_classes(outputs[:, :-2], classes) + 0.5 * functional.mse_loss(outputs[:, -2:], flows)

    return loss


def _of_classes(name: LossName) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    from segmentation_models_pytorch import losses  # takes seconds to import

    if name == "ce_dice":
        overlap: nn.Module = losses.DiceLoss("multiclass")
        return lambda logits, classes: functional.cross_entropy(logits, classes) + overlap(logits, classes)
    if name == "focal":
        loss: nn.Module = losses.FocalLoss("multiclass")
    elif name == "tversky":
        loss = losses.TverskyLoss("multiclass", **_TVERSKY)
    else:
        loss = losses.LovaszLoss("multiclass")
    return lambda logits, classes: loss(logits, classes)  # typed, unlike the call of a module
