"""Names of the methods by which objects are made; light, since the command line imports them."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["flows", "stars", "watershed", "components"]
"""Of flows, of rays, or of foreground alone."""
MapMethod = Literal["distances", "boundaries", "agglomeration", "affinities"]
"""Of maps of objects, on a fixed grid of blocks; what each is: `chorus.pipeline.instances.maps.rules`."""
AnyMethod = Literal["auto", Method, MapMethod]
"""As asked of `chorus objects`; ``auto`` is what the saved maps allow."""
ObjectsMethod = Literal["auto", "none", Method, MapMethod]
"""As asked of `chorus predict`; see `chorus.cluster.objects.after_predict` for ``auto``."""
MAP_METHODS: tuple[MapMethod, ...] = get_args(MapMethod)
VOLUME_METHODS: tuple[AnyMethod, ...] = ("components", *MAP_METHODS)
"""Of members that take volumes."""
