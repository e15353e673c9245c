"""Images as a plan has them."""

from __future__ import annotations

from chorus.cluster.planning.planned_image import PlannedImage


def planned(name: str, shape: tuple[int, ...] = (50, 70), axes: str = "yx", region: int = 64) -> PlannedImage:
    return PlannedImage(
        name=name,
        root=f"/data/{name}",
        path="",
        kind="image",
        ngff="0.5",
        axes=axes,
        shape=shape,
        dtype="uint16",
        level_path="s0",
        output_axes=axes,
        output_shape=shape,
        scale=(1.0,) * len(axes),
        translation=(0.0,) * len(axes),
        units=(None,) * len(axes),
        channels=(0,),
        model_height=shape[-2],
        model_width=shape[-1],
        region=region,
    )
