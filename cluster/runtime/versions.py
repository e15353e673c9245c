"""Compares software versions before any work: of the submitter, the driver and every node of its cluster."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.registry import plug_in_versions

Versions = Mapping[str, str]
"""Version by package; ``python`` is one of them, and ``missing`` the version of what is not there."""

# Packages on which the bytes of results depend, or that must be the same in a driver and its workers.
PACKAGES = (
    "chorus-bioimage",
    "numpy",
    "ray",
    "scikit-image",
    "scipy",
    "segmentation-models-pytorch",
    "torch",
    "zarr",
)
SUBMITTED_WITH = "CHORUS_SUBMITTED_WITH"
"""In the environment of a submitted job: the version of Chorus that checked its arguments."""
_MEND = "use the same image, or the same requirements/run.txt, everywhere"
# Time for a process to start on every node; a node that takes longer is busy or about to vanish.
_ANSWER_SECONDS = 60.0
# Ray's message that the cluster has another version of Ray or Python.
_SAID_BY_RAY = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
log = logging.getLogger("chorus")


def installed() -> dict[str, str]:
    """Return the versions of this process."""
    return _probe(_packages())()


def _packages() -> tuple[str, ...]:
    """Return the packages of Chorus, and those that add kinds of members."""
    return (*PACKAGES, *plug_in_versions())


def _probe(packages: Sequence[str]) -> Callable[[], dict[str, str]]:
    """Return a function that finds the versions of a process; nested, so that Ray sends it to nodes without Chorus."""

    def probe() -> dict[str, str]:
        import importlib.metadata
        import platform

        versions = {"python": ".".join(platform.python_version_tuple()[:2])}
        for package in packages:
            try:
                # Without the local version after a +: wheels for CUDA and for CPU are the same release.
                versions[package] = importlib.metadata.version(package).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "missing"
        return versions

    return probe


def require_submitter() -> None:
    """Raise RefusedError if this process is a job that another version of Chorus submitted."""
    theirs = os.environ.get(SUBMITTED_WITH)
    if theirs is not None and theirs != (ours := version("chorus-bioimage")):
        raise RefusedError(
            f"chorus-bioimage is {theirs} where this job was submitted and {ours} on the cluster; install {ours} "
            f"there, or renew the cluster's image"
        )


def require_same(address: str, ours: Versions, nodes: Sequence[tuple[str, Versions]]) -> None:
    """Raise RefusedError if a node of the cluster, by name, has another version of a package than `ours`."""
    for package, here in ours.items():
        other = [(name, versions.get(package, "missing")) for name, versions in nodes]
        differing = [(name, there) for name, there in other if there != here]
        if differing:
            name, there = differing[0]
            more = f" and on {len(differing) - 1} more" if len(differing) > 1 else ""
            raise RefusedError(
                f"--address {address}: {package} is {there} on node {name}{more} and {here} here, so that results "
                f"would depend on who does what; {_MEND}"
            )


def mismatch(address: str, message: str) -> str | None:
    """Return the error message for Ray's own report of another version of Ray or Python on the cluster.

    Returns
    -------
    None if `message` is no such report.
    """
    told = _SAID_BY_RAY.findall(message)
    if "ersion mismatch" not in message or len(told) != 2:
        return None
    there, here = (dict(zip(("ray", "python"), one, strict=True)) for one in told)
    package = "ray" if there["ray"] != here["ray"] else "python"
    return f"--address {address}: {package} is {there[package]} on the cluster and {here[package]} here; {_MEND}"


def of_nodes() -> list[tuple[str, Versions]]:
    """Return address and versions of every node of the cluster that Ray is connected to; nodes may vanish meanwhile."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from chorus.cluster.runtime.cancellation import cancel_running

    task = ray.remote(num_cpus=0, max_retries=RETRIES.probe_retries)(_probe(_packages()))
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote()] = node["NodeManagerAddress"]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    cancel_running(silent)
    for one in silent:
        log.warning("node %s did not say within %.0f s what it runs", asked[one], _ANSWER_SECONDS)
    versions: list[tuple[str, Versions]] = []
    for one in answered:
        try:
            versions.append((asked[one], ray.get(one)))
        except RayError as error:  # the node has just vanished
            log.warning("node %s did not say what it runs: %s", asked[one], str(error).strip().splitlines()[-1])
    return versions
