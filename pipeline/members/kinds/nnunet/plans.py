"""``plans.json`` and ``dataset.json`` as nnU-Net v2 writes them, and what of them predictions need.

References
----------
nnunetv2 2.8.1: ``utilities/plans_handling/plans_handler.py``, ``utilities/label_handling/label_handling.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.members.kinds.nnunet.networks import Architecture, OldArchitecture

_MEND = "take the folder as nnU-Net's training left it"
# What of nnU-Net would change results if a plan named another.
_PREPROCESSOR, _LABELS = "DefaultPreprocessor", "LabelManager"


class _Read(BaseModel):
    """A document of which only some fields are used."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Intensities(_Read):
    """Statistics of a channel's foreground voxels in the training set."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Configuration(_Read):
    """A configuration of the plans, such as ``2d``; axes are those of the network."""

    patch_size: list[Annotated[int, Field(ge=1, le=8192)]] = Field(min_length=2, max_length=3)
    spacing: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=2, max_length=3)
    preprocessor_name: str = _PREPROCESSOR
    normalization_schemes: list[str] = Field(min_length=1)
    use_mask_for_norm: list[bool] = Field(min_length=1)
    architecture: Architecture
    previous_stage: str | list[str] | None = None


class _Plans(_Read):
    dataset_name: str = "nnU-Net"
    image_reader_writer: str = ""
    label_manager: str = _LABELS
    transpose_forward: list[Literal[0, 1, 2]] = Field(min_length=3, max_length=3)
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, Intensities] = {}
    foreground_intensity_properties_by_modality: dict[str, Intensities] = {}


class Dataset(_Read):
    """``dataset.json``: channels and labels of the training set."""

    channel_names: dict[str, str] = {}
    modality: dict[str, str] = {}
    labels: dict[str, int | list[int]]

    @property
    def channels(self) -> list[str]:
        """Names of the channels in the network's order."""
        named = self.channel_names or self.modality
        return [named[key] for key in sorted(named, key=lambda key: (len(key), key))]

    @property
    def has_regions(self) -> bool:
        """Whether outputs are overlapping regions, unions of labels, with a sigmoid each."""
        return any(isinstance(label, list) and len(label) > 1 for label in self.labels.values())

    @property
    def classes(self) -> list[str]:
        """Names of the network's outputs, the background first although regions have no output for it."""
        labels = {name: _values(label) for name, label in self.labels.items() if name != "ignore"}
        if self.has_regions:
            return ["background", *(name for name, values in labels.items() if values != {0})]
        return sorted(labels, key=lambda name: min(labels[name]))


@dataclass(frozen=True)
class Plans:
    """The plans of one configuration.

    Attributes
    ----------
    dataset : name of the training set
    reader : class of nnU-Net that read the images, which tells the unit of spacings
    transpose : position in a (z, y, x) image of each axis of the network's volume
    configuration : what is planned; axes are those of the network
    intensities : of each channel by its number, for CT
    """

    dataset: str
    reader: str
    transpose: tuple[int, ...]
    configuration: Configuration
    intensities: dict[str, Intensities]


def read_plans(data: bytes, url: str, name: str) -> Plans:
    """Read what ``plans.json`` says of configuration `name`.

    Parameters
    ----------
    data : content of the file
    url : of the file

    Raises
    ------
    RefusedError
        If it is damaged, has no such configuration, or one that Chorus cannot do as nnU-Net does.
    """
    plans = parsed(data, _Plans, url, _MEND, RefusedError)
    fields = _inherited(url, plans.configurations, name)
    axes = len(fields.get("patch_size", ()))
    if "architecture" not in fields:
        old = parsed(json.dumps(fields).encode(), OldArchitecture, f"{url} ({name})", _MEND, RefusedError)
        fields["architecture"] = old.renewed(axes).model_dump()
    configuration = parsed(json.dumps(fields).encode(), Configuration, f"{url} ({name})", _MEND, RefusedError)
    if len(configuration.spacing) != axes or sorted(plans.transpose_forward) != [0, 1, 2]:
        raise RefusedError(f"{url}: patch_size, spacing and transpose_forward do not fit each other; {_MEND}")
    if configuration.previous_stage is not None:
        raise RefusedError(
            f"{url}: {name} is the second stage of a cascade, which takes the prediction of the first as input; add "
            "the trained folder of 3d_fullres or 3d_lowres instead"
        )
    for what, own, known in (
        ("preprocessor", configuration.preprocessor_name, _PREPROCESSOR),
        ("label manager", plans.label_manager, _LABELS),
    ):
        if own != known:
            raise RefusedError(
                f"{url}: was made with the {what} {own[:200]}, and Chorus knows {known}; export the network to ONNX "
                "and say in ensemble.yaml how its input is prepared"
            )
    intensities = plans.foreground_intensity_properties_per_channel or plans.foreground_intensity_properties_by_modality
    transpose = tuple(plans.transpose_forward)
    return Plans(plans.dataset_name, plans.image_reader_writer, transpose, configuration, intensities)


def read_dataset(data: bytes, url: str) -> Dataset:
    """Read ``dataset.json``; raise RefusedError if it is damaged, or labels are not 0 to n."""
    dataset = parsed(data, Dataset, url, _MEND, RefusedError)
    if not dataset.channels or _values(dataset.labels.get("background", -1)) != {0}:
        raise RefusedError(f"{url}: names no channels, or no label background: 0; {_MEND}")
    found = [sorted(_values(label)) for name, label in dataset.labels.items() if name != "ignore"]
    if not dataset.has_regions and sorted(found) != [[k] for k in range(len(found))]:
        raise RefusedError(f"{url}: its labels are not 0 to {len(found) - 1}, each once; {_MEND}")
    return dataset


def _inherited(url: str, configurations: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the fields of a configuration, with those of the ones that it inherits from."""
    chain: list[str] = []
    following: str | None = name
    while following is not None:
        if following not in configurations or following in chain:
            raise RefusedError(
                f"{url}: has no configuration {following}, or one that inherits from itself; it has "
                f"{', '.join(configurations)}: {_MEND}"
            )
        chain.append(following)
        following = configurations[following].get("inherits_from")
    fields: dict[str, Any] = {}
    for one in reversed(chain):
        fields |= configurations[one]
    return fields


def _values(label: int | Sequence[int]) -> set[int]:
    return {label} if isinstance(label, int) else set(label)
