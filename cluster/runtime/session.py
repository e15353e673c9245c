"""A Ray session: on a running cluster, or on this machine for the duration of a run."""

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
from chorus.cluster.runtime.late_writers import settle
from chorus.cluster.runtime.nodes import machines
from chorus.cluster.runtime.ray_logging import keep_ray_data_off_the_terminal, use_up_the_notice
from chorus.cluster.runtime.resources import Resources
from chorus.cluster.runtime.signals import held_back
from chorus.cluster.telemetry import logs
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.inference.allocation import ENVIRONMENT

log = logging.getLogger("chorus")
# Pixels do not travel through the object store; with staged placement, running sums do.
_STORE_BYTES = 256 << 20
_STAGED_SHARE = 0.3
_ANSWER_SECONDS = 10.0
# Ray's default folder for the logs of its latest session.
_LOGS = "/tmp/ray/session_latest/logs"
# In the message of the exception where processes of a local Ray are not up in time.
_LATE = "timed out during startup"
# Environment of every process of a run.
_ENVIRONMENT = {
    # One torch thread per actor; idle OpenMP threads must not spin on cores that others need.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray must not hide the machine's devices from actors without a GPU; this will become Ray's default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    logs.VARIABLE: "plain",
} | ENVIRONMENT

# For a local Ray. It ends idle processes as soon as there are more processes than cores, and there are as many member
# actors as cores: each image would be finished by a new process that imports torch, longer than the work itself takes.
_LIMITS = {"RAY_num_workers_soft_limit": str(2 * (psutil.cpu_count() or 1) + 4)}


def start(address: str | None, *, staged: bool, metrics_port: int | None = None) -> Resources:
    """Connect to `address`, or start a local Ray; return its resources.

    Parameters
    ----------
    staged : whether running sums will travel through its object store
    metrics_port : where a local Ray serves its metrics; a cluster has its own since it was started

    Raises
    ------
    RefusedError
        If there is no cluster at the address, a node of it runs other versions, or Ray cannot be started here.
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
        context = _init(address, started)
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
    except SystemExit as error:  # Ray's reaction to SIGTERM while it starts
        if callable(terminate):
            terminate(signal.SIGTERM, None)
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # A local Ray installs its own handler of SIGTERM, which ends the process at once.
            signal.signal(signal.SIGTERM, terminate or signal.SIG_DFL)
    keep_ray_data_off_the_terminal()
    use_up_the_notice()
    if joining and address is not None:
        _require_same_versions(address)
    return found(_logs(context))


def _init(address: str | None, options: dict[str, Any], starts: int = RETRIES.ray_starts) -> Any:
    """Call `ray.init`; a local Ray that is not up in time, as on a busy machine, is started `starts` times."""
    try:
        # "local": otherwise Ray would join any cluster that happens to run on this machine.
        return ray.init(
            address or "local", log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True, **options
        )
    except Exception as error:
        if address is not None or _LATE not in str(error):  # a plain Exception: Ray has no class for it
            raise
        ray.shutdown()
        if starts == 1:
            raise TimeoutError(first_line(error)) from error
        log.warning("Ray was not up in time on this machine; starting it again")
        return _init(address, options, starts - 1)


def found(logs: str) -> Resources:
    """Return what the cluster has now; see `start`."""
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
    """Leave the cluster and raise RefusedError if one of its nodes runs other versions than this process."""
    try:
        versions.require_same(address, versions.installed(), versions.of_nodes())
    except RefusedError:
        ray.shutdown()
        raise


def _logs(context: object) -> str:
    folder = getattr(context, "address_info", {}).get("session_dir")
    return f"{folder}/logs" if folder else _LOGS


def _require_answer(address: str | None) -> None:
    """Raise OSError if nobody listens at ``host:port``: Ray would try for a quarter of an hour."""
    if address and ":" in address and "://" not in address:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()


def _local(staged: bool, metrics_port: int | None) -> dict[str, Any]:
    """Return the settings of a local Ray: no dashboard, and an object store as large as staged placement needs."""
    store = int(psutil.virtual_memory().total * _STAGED_SHARE) if staged else 0
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": max(_STORE_BYTES, store)}
    return own if metrics_port is None else own | {"_metrics_export_port": metrics_port}


def stop() -> None:
    """Leave the cluster; one that `start` started ends."""
    # Ray, stopped half-way, leaves processes behind, and may end this one with an exit code of its own.
    with held_back():
        settle()
        ray.shutdown()
