"""Starting a local Ray that is not up in time."""

from __future__ import annotations

from typing import Any

import pytest

from chorus.cluster.runtime import session
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import RefusedError

# As Ray words it (ray/_private/node.py).
LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


class Ray:
    """Counts what is asked of Ray, and is late so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
        self.late, self.starts, self.ends = late, 0, 0
        monkeypatch.setattr(session.ray, "init", self.init)
        monkeypatch.setattr(session.ray, "shutdown", self.shutdown)

    def init(self, *_: object, **__: object) -> dict[str, Any]:
        self.starts += 1
        if self.starts <= self.late:
            raise Exception(LATE)  # noqa: TRY002 - as Ray does
        return {}

    def shutdown(self) -> None:
        self.ends += 1


def test_a_ray_that_is_late_once_is_ended_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, late=1)
    assert session._init(None, {}) == {}
    assert (ray.starts, ray.ends) == (2, 1)


def test_a_ray_that_is_late_every_time_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, late=100)
    with pytest.raises(RefusedError, match=r"Ray does not start on this machine.*timed out during startup"):
        session.start(None, staged=False)
    assert ray.starts == ray.ends == RETRIES.ray_starts


def test_a_cluster_elsewhere_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, late=1)
    with pytest.raises(Exception, match="timed out"):
        session._init("10.0.0.1:6379", {})
    assert (ray.starts, ray.ends) == (1, 0)
