"""Loss functions: a loss of the classes, and those of flows and boundaries if there are any."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from chorus.pipeline.training.data.augment import Batch
from chorus.pipeline.training.settings import LossName

_TVERSKY = {"alpha": 0.3, "beta": 0.7}  # false negatives weigh more than false positives, as in Salehi et al.

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]
"""Loss of outputs (batch, classes, flows and boundaries, *patch) beside a batch."""


def new_loss(name: LossName) -> Loss:
    """Return the loss with this name; losses of flows and boundaries are added to it.

    Of flows it is half their mean squared error, as in Cellpose; of boundaries binary cross-entropy and Dice.

    References
    ----------
    Dice: Milletari et al., 3DV 2016. Focal: Lin et al., ICCV 2017. Tversky: Salehi et al., MLMI 2017. Lovasz: Berman
    et al., CVPR 2018. Flows: Stringer et al., Nature Methods 18:100 (2021), Methods; ``cellpose.train``.
    """
    from segmentation_models_pytorch import losses  # takes seconds to import

    of_classes = _of_classes(name)
    overlap: nn.Module = losses.DiceLoss("binary")

    def loss(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        outputs = outputs.float()
        more = 2 * (batch.flows is not None) + (batch.boundaries is not None)
        classes = outputs.shape[1] - more
        total = of_classes(outputs[:, :classes], batch.classes)
        if batch.flows is not None:
            total = total + 0.5 * functional.mse_loss(outputs[:, classes : classes + 2], batch.flows)
        if batch.boundaries is not None:
            ridges = outputs[:, -1]
            error = functional.binary_cross_entropy_with_logits(ridges, batch.boundaries)
            total = total + error + overlap(ridges, batch.boundaries)
        return total

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
