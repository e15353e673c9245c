"""Weights of a Keras network from its HDF5 file, layer by layer.

::

    weights_best.h5
      layer_names: conv2d_2, conv2d_3, max_pooling2d_1, down_level_0_no_0, ...      (attribute)
      conv2d_2
        weight_names: conv2d_2/kernel:0, conv2d_2/bias:0                            (attribute)
        conv2d_2/kernel:0  conv2d_2/bias:0

Keras 2 ends the names of weights in ``:0``, Keras 3 does not. Layers without a name of their own are numbered in the
order of their creation, from whatever number the process had reached.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import RefusedError, first_line

Arrays = Mapping[str, NDArray[np.float32]]
"""The weights of a layer by name, such as ``kernel`` and ``bias``."""

_SAVE = "save it in StarDist with model.keras_model.save_weights('weights_best.h5')"


@dataclass
class KerasLayers:
    """The layers of a file that have weights; each is taken once.

    Attributes
    ----------
    url : of the file, for messages
    """

    url: str
    named: dict[str, Arrays]
    numbered: dict[str, list[Arrays]] = field(default_factory=dict)

    def take(self, name: str) -> Arrays:
        """Take the layer of that name; raise RefusedError if there is none."""
        if name not in self.named:
            raise RefusedError(f"{self.url}: has no layer {name}, which config.json asks for; {_SAVE}")
        return self.named.pop(name)

    def next(self, kind: str) -> Arrays:
        """Take the first layer of a kind that has no name of its own; raise RefusedError if there is none left."""
        if not self.numbered.get(kind):
            raise RefusedError(f"{self.url}: has fewer layers {kind} than config.json asks for; {_SAVE}")
        return self.numbered[kind].pop(0)

    def finish(self) -> None:
        """Raise RefusedError if a layer was not taken."""
        left = [*self.named, *(kind for kind, layers in self.numbered.items() if layers)]
        if left:
            raise RefusedError(f"{self.url}: has a layer {left[0]} that config.json does not know; {_SAVE}")


def read_layers(url: str, data: bytes) -> KerasLayers:
    """Read the layers of a weight file.

    Parameters
    ----------
    url : of the file, for messages
    data : its bytes

    Raises
    ------
    RefusedError
        If it is not in the format in which StarDist saves, or h5py is missing.
    """
    try:
        h5py: Any = import_module("h5py")
    except ImportError as error:
        raise RefusedError(
            f"{url}: weights of StarDist need h5py; install it with `pip install 'chorus-bioimage[hdf5]'`"
        ) from error
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise RefusedError(f"{url}: not in the format of Keras 2 that StarDist saves; {_SAVE}")
            layers = {name: _arrays(root[name]) for name in _texts(root.attrs["layer_names"])}
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise RefusedError(f"{url}: cannot be read as weights of Keras ({first_line(error)}); {_SAVE}") from error
    return _sorted(url, {name: arrays for name, arrays in layers.items() if arrays})


def _arrays(group: Any) -> Arrays:
    names = _texts(group.attrs["weight_names"])
    return {re.sub(r":\d+$", "", name.rsplit("/", 1)[-1]): np.asarray(group[name], np.float32) for name in names}


def _texts(values: Sequence[str | bytes]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _sorted(url: str, layers: Mapping[str, Arrays]) -> KerasLayers:
    sorted_layers, numbered = KerasLayers(url, {}), dict[str, dict[int, Arrays]]()
    for name, arrays in layers.items():
        match = re.fullmatch(r"(conv[23]d|batch_normalization)(?:_(\d+))?", name)
        if match is None:
            sorted_layers.named[name] = arrays
        else:
            kind = "conv" if match[1].startswith("conv") else match[1]
            numbered.setdefault(kind, {})[int(match[2] or 0)] = arrays
    sorted_layers.numbered = {kind: [of[number] for number in sorted(of)] for kind, of in numbered.items()}
    return sorted_layers
