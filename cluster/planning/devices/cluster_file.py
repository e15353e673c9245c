"""The cluster file: the nodes that are available and what they cost, as their owner states it (`docs/operators.md`)."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.errors import RefusedError, reason_of
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000)]


class NodeType(BaseModel):
    """Nodes of one kind.

    Attributes
    ----------
    count : nodes, or from `min` to `max` where the cluster grows and shrinks
    gpus, gpu_memory_gb : of a node, and of each of its GPUs
    cpus, memory_gb : of a node; members run on its cores where it has no GPU
    price_per_hour : of a node
    spot, preemptions_per_hour : whether a node may be preempted, and how often per hour
    start_seconds : from asking for a node until Ray answers on it
    relative_speed, seconds_per_tile : of a GPU, or of a core: as a multiple of the calibrated device's speed, or as it
        was measured on one, all members and augmentations; one of the two
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    count: Count | None = None
    min: Annotated[int, Field(ge=0)] | None = None
    max: Count | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_memory_gb: Positive | None = None
    cpus: Annotated[int, Field(ge=1, le=4096)]
    memory_gb: Positive
    price_per_hour: Price
    spot: bool = False
    preemptions_per_hour: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    start_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 180.0
    relative_speed: Positive | None = None
    seconds_per_tile: Positive | None = None

    @model_validator(mode="after")
    def _whole(self) -> NodeType:
        if (self.count is None) == (self.max is None) or (self.min is not None and self.max is None):
            raise ValueError("give either `count`, or `min` and `max`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("`min` is more than `max`")
        if (self.gpus > 0) != (self.gpu_memory_gb is not None):
            raise ValueError("give `gpu_memory_gb` where there are `gpus`, and only there")
        if self.preemptions_per_hour and not self.spot:
            raise ValueError("`preemptions_per_hour` is for nodes with `spot: true`")
        if (self.relative_speed is None) == (self.seconds_per_tile is None):
            raise ValueError("give one of `relative_speed` and `seconds_per_tile`")
        return self

    @property
    def most(self) -> int:
        """Return the largest number of nodes."""
        return self.count or self.max or 0

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of nodes to simulate: the fixed one, or the minimum and the maximum."""
        return [self.most] if self.count or not self.min or self.min == self.max else [self.min, self.most]

    def devices(self, device: DeviceKind) -> int:
        """Return the devices of that kind per node: GPUs, or cores."""
        return device_of(device).slots(self.cpus, self.gpus)


class StoragePrices(BaseModel):
    """What a bucket costs, and how fast it is for one actor.

    Attributes
    ----------
    price_per_million_reads, price_per_million_writes : requests
    price_per_gb_read : of source pixels, where reads are charged, as from another cloud region
    price_per_gb_month : of what is kept of the output
    seconds_per_request, megabytes_per_second : of one actor
    requests_per_second : the total that the bucket accepts
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    price_per_million_reads: Price = 0.0
    price_per_million_writes: Price = 0.0
    price_per_gb_read: Price = 0.0
    price_per_gb_month: Price = 0.0
    seconds_per_request: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    megabytes_per_second: Positive = 100.0
    requests_per_second: Positive | None = None


class ClusterFile(BaseModel):
    """The nodes and prices of a cluster.

    Attributes
    ----------
    currency : of all prices, three letters
    node_types : that can do the work
    price_per_hour : of what runs beside the nodes, such as the head and the cluster itself
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    node_types: Annotated[list[NodeType], Field(min_length=1)]
    price_per_hour: Price = 0.0
    storage: StoragePrices = StoragePrices()

    @model_validator(mode="after")
    def _named_once(self) -> ClusterFile:
        names = [one.name for one in self.node_types]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two node types are called {name!r}; name them apart")
        return self

    def price_of_a_device(self, device: DeviceKind) -> float:
        """Return the price of a device per hour, with the share of what runs beside it; the mean where nodes differ.

        Raises
        ------
        RefusedError
            If no node type has such a device.
        """
        devices = sum(one.most * one.devices(device) for one in self.node_types)
        if not devices:
            raise RefusedError("the cluster file has no node type with GPUs; add one, or use --device cpu")
        return (self.price_per_hour + sum(one.most * one.price_per_hour for one in self.node_types)) / devices


def read_cluster(url: str) -> ClusterFile:
    """Read and validate a cluster file; raise RefusedError naming the file, the field and the remedy."""
    url = storage.normalise(url)
    try:
        return ClusterFile.model_validate(yaml.safe_load(storage.read_bytes(url).decode()))
    except OSError as error:
        raise RefusedError(f"cluster file {failure_sentence(error, url)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusedError(f"{url}: not YAML ({str(error).splitlines()[0]}); see infra/cost/cluster.yaml") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        reason = reason_of(first["msg"])
        raise RefusedError(f"{url}: field {field}: {reason}; correct it (see infra/cost/cluster.yaml)") from error
