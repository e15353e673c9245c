"""Limits of all retries of Chorus, in one place. docs/retries.md lists what is retried where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Limits of all retries.

    Attributes
    ----------
    request_attempts : of one request to a bucket or web server, the first one included
    request_first_wait, request_longest_wait : seconds; upper bounds of the random wait after the first failure, which
        doubles each time, and of any wait
    memory_divisor, memory_least_tiles : a call of a member that runs out of memory is repeated with fewer tiles,
        divided by the former, down to the latter
    region_attempts : times that a region may end its process on a node that survives, before it is set aside
    region_nodes : times that a region may be in progress on a process or node that ends, for any reason
    streams : streams of regions in a row that may break before any of their regions is done
    stream_start_seconds, stream_patience : a stream is aborted if no region is done within these seconds for the start
        of its actors plus this multiple of the expected time of its blocks
    actor_starts : actors in a row that may die while they start, before their stream is aborted
    device_seconds, machine_seconds : that the trial of an ensemble waits for a device to become free, or for a machine
        with one to be started
    task_retries : times that a task beside the actors (finishing an image, converting) is restarted after its process
        died
    probe_retries : the same for the task that asks a node for its versions
    ray_starts : times that a local Ray may be started, where its processes are not up in time
    fold_deaths : deaths in a row of a training fold's process without progress
    job_seconds : for which a cluster that does not answer is queried again while one of its jobs is followed
    replica_deaths : serving replicas that may die with one request in progress
    replica_pause : seconds before the second of them gets it; doubles each time
    client_retries : times that `chorus.Client` repeats a request that was rejected because of overload
    client_longest_wait : maximum seconds that it waits, if the server asks for more
    """

    request_attempts: int = 10
    request_first_wait: float = 0.5
    request_longest_wait: float = 30.0
    memory_divisor: int = 2
    memory_least_tiles: int = 1
    region_attempts: int = 3
    region_nodes: int = 10
    streams: int = 3
    stream_start_seconds: float = 600.0
    stream_patience: float = 10.0
    actor_starts: int = 3
    device_seconds: float = 600.0
    machine_seconds: float = 1800.0
    task_retries: int = 3
    probe_retries: int = 1
    ray_starts: int = 2
    fold_deaths: int = 3
    job_seconds: float = 120.0
    replica_deaths: int = 3
    replica_pause: float = 0.25
    client_retries: int = 4
    client_longest_wait: float = 30.0


RETRIES = RetryLimits()
