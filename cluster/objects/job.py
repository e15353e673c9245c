"""What a worker is told of an image whose objects are made, and what it says of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from chorus.cluster.planning.image_table import PlannedImage
from chorus.cluster.planning.volume_views import spacing_of
from chorus.pipeline.core.fields import FLOWS, OF_OBJECTS
from chorus.pipeline.instances.plane_objects import Method
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.instances.shapes import Spacing
from chorus.pipeline.io import storage
from chorus.pipeline.io.arrays import LabelImage
from chorus.pipeline.io.models import ImageLayout


@dataclass(frozen=True)
class ObjectJob:
    """What a worker is told of an image.

    Attributes
    ----------
    layout : of the image's results
    work : URL of its folder, see above
    scratch : URL of the folder of what is not needed in the end; `work`, unless one task does all of the image
    classes : value and name of each class that has objects
    method : what makes objects of foreground
    multilabel, flows : see `chorus.pipeline.instances.stored.StoredPlane`
    strict : a missing chunk of the source is an error
    """

    image: PlannedImage
    layout: ImageLayout
    work: str
    scratch: str
    classes: tuple[tuple[int, str], ...]
    method: Method
    multilabel: bool
    settings: ObjectSettings
    strict: bool
    flows: tuple[ImageLayout, ...] = ()

    @property
    def plane(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    @property
    def spacing(self) -> Spacing:
        """Of the pixels of a plane."""
        return spacing_of(self.image, "yx")

    @property
    def doubts(self) -> tuple[str, ...]:
        return doubts_of(self.layout.channels, second_flows=bool(self.flows))

    @property
    def channels(self) -> range:
        """All channels of the source, also those that the ensemble does not see."""
        return range(self.image.shape[self.image.axes.index("c")] if "c" in self.image.axes else 1)

    @property
    def names_layout(self) -> ImageLayout:
        """Where the names of objects are kept until they are numbered."""
        return replace(self.layout, url=self.scratch, labels_url=self.scratch, labels_ngff="0.5")

    def rows_url(self, region: int) -> str:
        return storage.join(self.scratch, "rows", f"{region:08d}.parquet")

    def pieces_url(self, region: int) -> str:
        """Sums of the pieces of components at the borders of a region."""
        return storage.join(self.scratch, "pieces", f"{region:08d}.parquet")

    def edges_url(self, region: int) -> str:
        """Names of components along the borders of a region."""
        return storage.join(self.scratch, "pieces", f"{region:08d}.npz")

    def joined_url(self, class_name: str, t: int, z: int) -> str:
        """Pieces of a plane and the objects that they are of."""
        return storage.join(self.scratch, "known", f"joined-{class_name}-{t}-{z}")

    def known_url(self, class_name: str, t: int, z: int) -> str:
        return storage.join(self.scratch, "known", f"{class_name}-{t}-{z}")

    @property
    def table_url(self) -> str:
        return storage.join(self.work, "objects.parquet")

    def tasks(self, stage: str) -> int:
        """How many tasks a stage of the work is, see `chorus.cluster.objects.run`."""
        return self.image.regions if stage in ("regions", "labels") else 1

    def pixels(self, stage: str, place: int) -> int:
        """How many pixels a task of a stage takes."""
        whole = {"all": self.image.pixels}
        return self.image.locate(place).window.pixels if stage == "regions" else whole.get(stage, 0)


class ImageObjects(BaseModel):
    """How many objects an image has.

    Attributes
    ----------
    counts : per class
    most : of a class in a plane
    maps : columns of means of the image's table
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    most: dict[str, int]
    maps: list[str]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def label_image(self, class_name: str) -> LabelImage:
        return LabelImage(class_name, "uint32" if self.most[class_name] <= np.iinfo(np.uint32).max else "uint64")


def doubts_of(saved: Collection[str], *, second_flows: bool) -> tuple[str, ...]:
    """Doubts that objects have of a run that kept the maps `saved`; flows of a second ensemble bring their own."""
    return tuple(field.name for field in OF_OBJECTS if field.name in saved or (second_flows and field.role is FLOWS))
