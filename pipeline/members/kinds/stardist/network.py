"""The networks of StarDist in torch, built with their weights from those of Keras.

References
----------
``stardist.models.StarDist2D._build`` and ``StarDist3D._build``, StarDist 0.9.2; ``csbdeep.internals.blocks``, CSBDeep
0.8.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from chorus.pipeline.members.kinds.stardist.backbones import Unet, residual_network
from chorus.pipeline.members.kinds.stardist.keras_weights import KerasLayers
from chorus.pipeline.members.kinds.stardist.layers import Builder
from chorus.pipeline.members.kinds.stardist.settings import Activation, Design, UnetDesign

_SHORTEST = 1e-3  # ray


class StarDistNetwork(nn.Module):
    """A network of StarDist as members answer: probabilities of objects, by class where they have one, then the rays.

    Probabilities are those of the foreground classes: of an object, times that of its class given that it is one, so
    that they add up to the probability of an object.
    """

    def __init__(self, backbone: nn.Module, heads: _Heads) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Parameters
        ----------
        tiles : (batch, channels, y, x) or (batch, channels, z, y, x) float32; sizes are multiples of `Design.divisor`

        Returns
        -------
        torch.Tensor
            (batch, classes + rays, ...) float32 at the size of the tiles over the grid; rays in pixels of the tiles.
        """
        objects, rays, classes = self.heads(self.backbone(tiles))
        if classes is not None:
            of_objects = classes[:, 1:]
            objects = objects * of_objects / of_objects.sum(1, keepdim=True).clamp_min(torch.finfo(classes.dtype).tiny)
        return torch.cat([objects, rays.clamp_min(_SHORTEST)], 1)


class _Heads(nn.Module):
    """Object probability, rays, and where objects have classes those of the classes with background first."""

    def __init__(
        self, build: Builder, design: Design, channels: int, between: int, kernel: Sequence[int], act: Activation
    ) -> None:
        super().__init__()
        point, last = (1,) * design.n_dim, between or channels

        def features(name: str) -> nn.Module:
            if not between:
                return nn.Identity()
            return build.block(build.layers.take(name), channels, between, kernel, act)

        self.features = features("features")
        self.objects = build.convolution(build.layers.take("prob"), last, 1, point)
        self.rays = build.convolution(build.layers.take("dist"), last, design.n_rays, point)
        self.of_classes: nn.Module | None = None
        if design.n_classes is not None:
            classes = build.convolution
            self.of_classes = nn.Sequential(
                features("features_class"),
                classes(build.layers.take("prob_class"), last, design.n_classes + 1, point),
                nn.Softmax(dim=1),
            )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        shared = self.features(x)
        classes = None if self.of_classes is None else self.of_classes(x)
        return self.objects(shared).sigmoid(), self.rays(shared), classes


def build_network(design: Design, layers: KerasLayers) -> StarDistNetwork:
    """Build the network of a model with its weights.

    Parameters
    ----------
    design : of the model
    layers : all of its weights; they are taken

    Raises
    ------
    RefusedError
        If the weights do not fit the design.
    """
    build = Builder(layers, design.n_dim)
    if isinstance(design, UnetDesign):
        unet = Unet(build, design)
        heads = _Heads(
            build, design, unet.channels, design.net_conv_after_unet, design.unet_kernel_size, design.unet_activation
        )
        network = StarDistNetwork(unet, heads)
    else:
        resnet, channels = residual_network(build, design)
        after, kernel = design.net_conv_after_resnet, design.resnet_kernel_size
        network = StarDistNetwork(resnet, _Heads(build, design, channels, after, kernel, design.resnet_activation))
    layers.finish()
    return network.eval()
