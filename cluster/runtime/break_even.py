"""Whether work is carried out in this process or on Ray, where nobody chose (`--executor auto`).

The result is the same bytes, so that only time counts: Ray uses all cores and devices, reads ahead, and outlives a
process that dies, but it must be started first. The rule: **this process, where work ends there before a Ray that is
started now would have done it.** Always Ray where a person names a cluster, asks for several actors or stages, where
the machine has several GPUs, and where Ray runs in this process already.

- A run is forecast: tiles times the time of one, which the trial of the ensemble measures, and `IMAGE_SECONDS` of an
  image beside its forward passes (reading, writing with pyramids, scores, thumbnail). Where that is at most
  `SERIAL_SECONDS`, it stays here. Of more than `TRIED_TILES` no trial is made here: it would be made again on Ray.
- Other commands (convert, objects, evaluate, export, truth) are tasks that need nothing of each other, and of which
  nobody knows how long they take. They begin here, and what is left after `SERIAL_SECONDS` goes to Ray. So they take
  at most twice as long as if that had been known before.
"""

from __future__ import annotations

import sys

import psutil

SERIAL_SECONDS = 20.0
"""Seconds of work from which on Ray is worth its start.

Measured on 2 cores that others kept busy (load 11): import of Ray 10 s, its start 32 s, the first tasks 6 s, its end
2 s; alone on a machine a fifth of that. Beside it each actor imports torch and loads the members, 5 s of CPU. What is
saved is at most the work itself, halved on two cores.
"""
IMAGE_SECONDS = 0.3
"""Seconds of an image beside its forward passes, in one process.

Measured: 8 images of 256 x 256 more take 0.8 s of CPU each with `nuclei-fluo`, with 20 forward passes of it, maps,
pyramids, thumbnail and objects."""
TRIED_TILES = 1_000
"""Tiles up to which a run may be a small one: at 20 ms a tile, of the smallest networks on a core, 20 s."""


def ray_is_up() -> bool:
    """Whether this process is connected to Ray; it is not imported for the answer."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def several_cores() -> bool:
    """Whether work can be divided on this machine at all."""
    return (psutil.cpu_count() or 1) > 1
