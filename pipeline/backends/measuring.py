"""Speed of each backend for an ensemble on this device; `chorus.pipeline.backends.choosing` caches and uses it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.backends.choice import Backend, difference, usable
from chorus.pipeline.backends.conversion import device_name
from chorus.pipeline.backends.member import on_backend
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import TileSize, tile_shape
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.members.contract import Member, ModuleMember, channels_last

_ROUNDS = 5
Answering = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Work:
    """The input of a call of a member.

    Attributes
    ----------
    tile : its size
    samples : tiles per call, each augmentation counted
    """

    tile: TileSize
    samples: int
    precision: Precision
    device: torch.device


class Timing(BaseModel):
    """Timing of a backend with one network.

    Attributes
    ----------
    rate : tiles per second, each augmentation counted; 0 if it cannot be used
    setup_seconds : from the weights to the first answer; less once it is in the cache
    difference : of its answer to PyTorch in fp32, see `chorus.pipeline.backends.choice.difference`
    message : why it cannot be used
    """

    model_config = ConfigDict(frozen=True)

    backend: Backend
    rate: float = 0.0
    setup_seconds: float = 0.0
    difference: float = 0.0
    message: str = ""


class NetworkTimings(BaseModel):
    """Timings of all backends with one network, which `members` of the ensemble share."""

    model_config = ConfigDict(frozen=True)

    network: str
    members: list[int]
    timings: list[Timing]


class EnsembleTimings(BaseModel):
    """Timings of an ensemble.

    Attributes
    ----------
    device : its name
    threads : number of threads of torch
    eager_fp32 : per network, tiles per second of PyTorch in fp32 with channels first, as networks are published
    """

    model_config = ConfigDict(frozen=True)

    ensemble: str
    tile: TileSize
    samples: int
    precision: Precision
    device: str
    threads: int
    eager_fp32: list[float]
    networks: list[NetworkTimings]

    @property
    def best(self) -> Backend:
        """The backend with the least time per tile for all members."""
        usable_by_all = [
            backend
            for backend in (timing.backend for timing in self.networks[0].timings)
            if all(_rate(network, backend) > 0 for network in self.networks)
        ]
        return min(usable_by_all, key=self.seconds)

    def seconds(self, backend: Backend) -> float:
        """Return the seconds for one sample of a tile by each member."""
        return sum(len(network.members) / _rate(network, backend) for network in self.networks)

    @property
    def seconds_eager_fp32(self) -> float:
        """Seconds for one sample of a tile by each member in plain PyTorch, fp32, channels first."""
        return sum(len(one.members) / rate for one, rate in zip(self.networks, self.eager_fp32, strict=True))


def measured(
    ensemble: Ensemble,
    work: Work,
    seconds: float,
    begun: Callable[[str, Backend], None] = lambda *_: None,
    backends: Sequence[Backend] | None = None,
) -> EnsembleTimings:
    """Measure backends with every network of an ensemble.

    Parameters
    ----------
    ensemble, work : what to measure
    seconds : for which each backend is called, in turns, so that other load on the machine affects all alike
    begun : called with each network and backend before it is measured
    backends : by default all that can be used here; ``eager`` is always among them
    """
    groups: dict[str, list[int]] = {}
    for index, entry in enumerate(ensemble.spec.members):
        groups.setdefault(entry.model_dump_json(exclude={"weights", "sha256"}), []).append(index)
    tried = [one for one in usable(work.precision, work.device.type) if backends is None or one in ("eager", *backends)]
    networks, plain = [], []
    for members in groups.values():
        member = ensemble.load_member(members[0], work.device, work.tile)
        channels = ensemble.inputs([members[0]], work.tile).count
        name = type(getattr(member, "module", member)).__name__
        shape = (work.samples, channels, *tile_shape(work.tile))
        timings, eager = _timed(member, shape, work, seconds, tried, partial(begun, name))
        networks.append(NetworkTimings(network=name, members=members, timings=timings))
        plain.append(eager)
    return EnsembleTimings(
        ensemble=ensemble.hash,
        tile=work.tile,
        samples=work.samples,
        precision=work.precision,
        device=device_name(work.device),
        threads=torch.get_num_threads(),
        eager_fp32=plain,
        networks=networks,
    )


def _timed(
    member: Member,
    shape: tuple[int, ...],
    work: Work,
    seconds: float,
    backends: Sequence[Backend],
    begun: Callable[[Backend], None],
) -> tuple[list[Timing], float]:
    """Return the timing of each backend, and the tiles per second of PyTorch in fp32 with channels first."""
    tiles = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(work.device)
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    timing_of: dict[Backend, Timing] = {}
    with torch.inference_mode():
        reference = member(tiles)
        for backend in backends:
            begun(backend)
            started = time.perf_counter()
            converted = on_backend(member, backend, work.precision, work.device)
            if backend != "eager" and converted is member:
                timing_of[backend] = timing_of["eager"].model_copy(update={"backend": backend})
                continue
            call = _call(converted, tiles.contiguous(memory_format=channels_last(tiles.ndim - 2)), work.precision)
            try:
                answer = call()
            except RefusedError as error:
                timing_of[backend] = Timing(backend=backend, message=str(error))
                continue
            took = time.perf_counter() - started
            timing_of[backend] = Timing(
                backend=backend, setup_seconds=round(took, 2), difference=difference(answer, reference)
            )
            calls[backend] = call
        calls["plain"] = _call(_as_published(member), tiles, "fp32")
        rates = _rates(calls, len(tiles), seconds, work.device)
    timings = []
    for timing in timing_of.values():
        rate = 0.0 if timing.message else rates.get(timing.backend, rates["eager"])
        timings.append(timing.model_copy(update={"rate": rate}))
    return timings, rates["plain"]


def _as_published(member: Member) -> Answering:
    """Return a network with its weights in the layout in which most are published and run: channels first."""
    if not isinstance(member, ModuleMember) or isinstance(member.module, torch.jit.ScriptModule):
        return member
    network: torch.nn.Module = copy.deepcopy(member.module)
    return network.to(memory_format=torch.contiguous_format)


def _call(answering: Answering, tiles: torch.Tensor, precision: Precision) -> Callable[[], torch.Tensor]:
    dtype = AUTOCAST.get(precision)

    def call() -> torch.Tensor:
        with torch.autocast(tiles.device.type, dtype=dtype, enabled=dtype is not None):
            return answering(tiles).to(torch.float32)

    return call


def _rates(
    calls: dict[str, Callable[[], torch.Tensor]], samples: int, seconds: float, device: torch.device
) -> dict[str, float]:
    """Return tiles per second: the best of several rounds, in which all take turns."""
    best = dict.fromkeys(calls, 0.0)
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            call()  # also brings weights and memory back to it
            done, started = 0, time.perf_counter()
            while done == 0 or time.perf_counter() - started < seconds / _ROUNDS:
                call()
                done += 1
                device_of(device).synchronize()
            best[name] = max(best[name], done * samples / (time.perf_counter() - started))
    return {name: round(rate, 3) for name, rate in best.items()}


def _rate(network: NetworkTimings, backend: Backend) -> float:
    return next((timing.rate for timing in network.timings if timing.backend == backend), 0.0)
