"""How often what fails is tried again: every limit of Chorus in one place. docs/retries.md says by whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Limits of everything that tries again.

    Attributes
    ----------
    request_attempts : of one request to a bucket or web server, the first counted
    request_first_wait, request_longest_wait : seconds; upper bounds of the random wait after the first failure, which
        doubles each time, and of any wait
    memory_divisor, memory_least_tiles : a call of a member that needs too much memory is made again with so many times
        fewer tiles, until it has this few
    region_attempts : times that a region may end its process on a node that stays before it is set aside
    region_nodes : times that it may have been in hand on processes or nodes that ended, whatever the reason
    streams : streams of regions in a row that may break before any region of theirs ends
    stream_start_seconds, stream_patience : without any region ending a stream is broken off after so many seconds for
        actors to start and so many times the expected time of its blocks
    actor_starts : actors in a row that may die while they start before their stream is broken off
    device_seconds, machine_seconds : that the trial of an ensemble waits for a device to become free, or for a machine
        to be made that has one
    task_retries : times that a task beside the actors (finishing an image, converting) is begun anew as its process
        died
    probe_retries : the same of the task that asks a node for its versions
    fold_deaths : deaths of a training fold's process in a row without a step further
    job_seconds : that a cluster that does not answer is asked again while one of its jobs is followed
    replica_deaths : replicas of serving that may die with one request in their hands
    replica_pause : seconds before the second of them gets it; doubles each time
    client_retries : times that `chorus.Client` sends a request again that was refused as there was too much to do
    client_longest_wait : seconds that it waits at most where the server asks for more
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
    fold_deaths: int = 3
    job_seconds: float = 120.0
    replica_deaths: int = 3
    replica_pause: float = 0.25
    client_retries: int = 4
    client_longest_wait: float = 30.0


RETRIES = RetryLimits()
