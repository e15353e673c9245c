"""A Ray to work on: a running cluster, or one started on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

import psutil
import ray

from chorus.cluster.runtime import versions
from chorus.cluster.runtime.nodes import machines
from chorus.cluster.runtime.ray_logging import keep_ray_data_off_the_terminal, use_up_the_notice
from chorus.cluster.runtime.resources import Resources
from chorus.cluster.telemetry import logs
from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.inference.allocation import ENVIRONMENT

# Pixels do not travel through the object store; running sums do where the placement is staged.
_STORE_BYTES = 256 << 20
_STAGED_SHARE = 0.3
_ANSWER_SECONDS = 10.0
# Where Ray keeps the logs of its latest session, unless it was told otherwise.
_LOGS = "/tmp/ray/session_latest/logs"
# For every process of a run.
_ENVIRONMENT = {
    # One torch thread per actor; idle OpenMP threads must not spin on cores that others need.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Actors without a GPU must not lose sight of the machine's devices for good: the coming default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    logs.VARIABLE: "plain",
} | ENVIRONMENT

# For a local Ray. It ends idle processes as soon as there are more than cores, and the members' actors are as many as
# these: each image would be finished by a new process that imports torch, which takes longer than what it does then.
_LIMITS = {"RAY_num_workers_soft_limit": str(2 * (psutil.cpu_count() or 1) + 4)}


def start(address: str | None, *, staged: bool, metrics_port: int | None = None) -> Resources:
    """Connect to `address`, or start a local Ray; returns what is there.

    Parameters
    ----------
    staged : whether running sums will travel through its object store
    metrics_port : where a local Ray shows its metrics; a cluster was told when it was started

    Raises
    ------
    RefusedError
        If there is no cluster at the address, or a node of it runs other versions, or none can be started here.
    """
    for name, value in (_ENVIRONMENT | _LIMITS).items():
        os.environ.setdefault(name, value)
    joining = address is not None and not ray.is_initialized()
    started: dict[str, Any] = {} if address or ray.is_initialized() else _local(staged, metrics_port)
    if address:  # the processes of a cluster do not inherit from this one
        started = {"runtime_env": {"env_vars": {name: os.environ[name] for name in _ENVIRONMENT}}}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _require_answer(address)
        # "local": without it a cluster that happens to run on this machine would be joined.
        context = ray.init(
            address or "local", log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True, **started
        )
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        line = first_line(error)
        if address is None:
            raise RefusedError(f"Ray does not start on this machine ({line}); look into {_LOGS}") from error
        if sentence := versions.mismatch(address, str(error)):
            raise RefusedError(sentence) from error
        raise RefusedError(
            f"--address {address}: no Ray cluster of version {ray.__version__} answers there ({line}); start "
            f"one with `ray start --head`, or leave --address out"
        ) from error
    except SystemExit as error:  # how Ray answers SIGTERM while it starts
        if callable(terminate):
            terminate(signal.SIGTERM, None)
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # A local Ray takes SIGTERM for itself and ends the process there and then.
            signal.signal(signal.SIGTERM, terminate or signal.SIG_DFL)
    keep_ray_data_off_the_terminal()
    use_up_the_notice()
    if joining and address is not None:
        _require_same_versions(address)
    return found(_logs(context))


def found(logs: str) -> Resources:
    """What the cluster has now; see `start`."""
    there = machines()
    return Resources(
        cpus=sum(machine.cpus for machine in there),
        gpus=sum(machine.gpus for machine in there),
        nodes=len(there),
        memory=sum(machine.memory for machine in there),
        logs=logs,
        machines=there,
    )


def _require_same_versions(address: str) -> None:
    """Leave the cluster again, with a RefusedError, where a node of it runs other versions than this process."""
    try:
        versions.require_same(address, versions.installed(), versions.of_nodes())
    except RefusedError:
        ray.shutdown()
        raise


def _logs(context: object) -> str:
    folder = getattr(context, "address_info", {}).get("session_dir")
    return f"{folder}/logs" if folder else _LOGS


def _require_answer(address: str | None) -> None:
    """Raise OSError where nobody listens at ``host:port``: Ray would try for a quarter of an hour."""
    if address and ":" in address and "://" not in address:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()


def _local(staged: bool, metrics_port: int | None) -> dict[str, Any]:
    """A Ray of our own: no dashboard, and a store no larger than what travels through it."""
    store = int(psutil.virtual_memory().total * _STAGED_SHARE) if staged else 0
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": max(_STORE_BYTES, store)}
    return own if metrics_port is None else own | {"_metrics_export_port": metrics_port}


def stop() -> None:
    """Leave the cluster; one that `start` began ends."""
    ray.shutdown()
