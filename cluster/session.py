"""A Ray to work on: a running cluster, or one started on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import psutil
import ray

from pipeline.errors import RefusedError

# Pixels do not travel through the object store; running sums do where the placement is staged.
_STORE_BYTES = 256 << 20
_STAGED_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has: cores, GPUs, nodes, and bytes of memory."""

    cpus: int
    gpus: int
    nodes: int
    memory: int


def start(address: str | None, *, staged: bool) -> Resources:
    """Connect to `address`, or start a local Ray; returns what is there.

    Raises
    ------
    RefusedError
        If there is no cluster at the address, or it runs another version of Ray.
    """
    # One torch thread per actor; idle OpenMP threads must not spin on cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Actors without a GPU must not lose sight of the machine's devices for good: the coming default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        if address is None:
            memory = psutil.virtual_memory().total
            store = max(_STORE_BYTES, int(memory * _STAGED_SHARE)) if staged else _STORE_BYTES
            ray.init(
                include_dashboard=False,
                object_store_memory=store,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        else:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                line = str(error).strip().splitlines()[0]
                raise RefusedError(
                    f"--address {address}: no Ray cluster of version {ray.__version__} answers there ({line}); start "
                    f"one with `ray start --head`, or leave --address out"
                ) from error
    total: dict[str, float] = ray.cluster_resources()
    return Resources(
        cpus=int(total.get("CPU", 0)),
        gpus=int(total.get("GPU", 0)),
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        memory=int(total.get("memory", 0)),
    )


def stop() -> None:
    """Leave the cluster; one that `start` began ends."""
    ray.shutdown()
