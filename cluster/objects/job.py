"""The job of making the objects of an image, as a worker receives it, and its result."""

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
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import LabelImage


@dataclass(frozen=True)
class ObjectJob:
    """The job of making the objects of an image.

    Attributes
    ----------
    layout : of the image's results
    work : URL of the image's work folder, see `chorus.cluster.objects.tasks`
    scratch : URL of the folder of temporary files; `work`, unless one task does all of the image
    classes : value and name of each class that has objects
    method : how foreground becomes objects
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
        """Height and width in pixels."""
        return self.image.height, self.image.width

    @property
    def spacing(self) -> Spacing:
        """Spacing of the pixels of a plane."""
        return spacing_of(self.image, "yx")

    @property
    def doubts(self) -> tuple[str, ...]:
        """Names of the uncertainty columns of objects."""
        return doubts_of(self.layout.channels, second_flows=bool(self.flows))

    @property
    def channels(self) -> range:
        """All channels of the source, including those that the ensemble does not see."""
        return range(self.image.shape[self.image.axes.index("c")] if "c" in self.image.axes else 1)

    @property
    def names_layout(self) -> ImageLayout:
        """Where the names of objects are stored until they are numbered."""
        return replace(self.layout, url=self.scratch, labels_url=self.scratch, labels_ngff="0.5")

    def rows_url(self, region: int) -> str:
        """Return the URL of the rows of a region."""
        return storage.join(self.scratch, "rows", f"{region:08d}.parquet")

    def pieces_url(self, region: int) -> str:
        """Return the URL of the sums of the component pieces at a region's borders."""
        return storage.join(self.scratch, "pieces", f"{region:08d}.parquet")

    def edges_url(self, region: int) -> str:
        """Return the URL of the names of components along a region's borders."""
        return storage.join(self.scratch, "pieces", f"{region:08d}.npz")

    def joined_url(self, class_name: str, t: int, z: int) -> str:
        """Return the URL of the mapping from a plane's pieces to their objects."""
        return storage.join(self.scratch, "known", f"joined-{class_name}-{t}-{z}")

    def known_url(self, class_name: str, t: int, z: int) -> str:
        """Return the URL of the sorted names of all objects of a class in a plane."""
        return storage.join(self.scratch, "known", f"{class_name}-{t}-{z}")

    @property
    def table_url(self) -> str:
        """URL of the image's object table."""
        return storage.join(self.work, "objects.parquet")

    def tasks(self, stage: str) -> int:
        """Return the number of tasks of a stage, see `chorus.cluster.objects.run`."""
        return self.image.regions if stage in ("regions", "labels") else 1

    def pixels(self, stage: str, place: int) -> int:
        """Return the number of pixels of a task of a stage."""
        whole = {"all": self.image.pixels}
        return self.image.locate(place).window.pixels if stage == "regions" else whole.get(stage, 0)


class ImageObjects(BaseModel):
    """Number of objects of an image.

    Attributes
    ----------
    counts : per class
    most : per class, the maximum in one plane
    maps : columns of means of the image's table
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    most: dict[str, int]
    maps: list[str]

    @property
    def total(self) -> int:
        """Number of objects of all classes."""
        return sum(self.counts.values())

    def label_image(self, class_name: str) -> LabelImage:
        """Return the label image of a class, uint32 unless a plane has too many objects for it."""
        return LabelImage(class_name, "uint32" if self.most[class_name] <= np.iinfo(np.uint32).max else "uint64")


def doubts_of(saved: Collection[str], *, second_flows: bool) -> tuple[str, ...]:
    """Return the uncertainties of objects of a run that saved these maps; a second ensemble adds that of its flows."""
    return tuple(field.name for field in OF_OBJECTS if field.name in saved or (second_flows and field.role is FLOWS))
