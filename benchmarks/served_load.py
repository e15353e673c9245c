"""What Locust does in `benchmarks/served.py`: each user posts one image after the other, and at the end all is counted.

::

    CHORUS_IMAGES=folder CHORUS_FIGURES=f.json locust -f benchmarks/served_load.py --headless --host URL -u 16 -t 60s
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, events, task

_images = [path.read_bytes() for path in sorted(Path(os.environ["CHORUS_IMAGES"]).glob("*.npy"))]
_turn = itertools.count()
_statuses: Counter[str] = Counter()


class Client(FastHttpUser):
    """Waits for the answer to an image, then asks for the next."""

    connection_timeout = network_timeout = 600.0

    @task
    def predict(self) -> None:
        """Ask for an image; each one is asked for about as often."""
        image = _images[next(_turn) % len(_images)]
        headers = {"Content-Type": "application/x-npy"}
        answer = self.client.post("/v1/predict", data=image, headers=headers)
        _statuses[str(answer.status_code)] += 1
        if answer.status_code in (429, 503):
            gevent.sleep(1)  # as a client does that is told to come again, only sooner


@events.quitting.add_listener
def _write(environment: Any, **_: object) -> None:
    total = environment.stats.total
    answered = total.num_requests - total.num_failures
    took = (total.last_request_timestamp or 0) - total.start_time
    figures = {
        "images_per_second": answered / took if took > 0 else 0.0,
        **{f"p{share}": total.get_response_time_percentile(share / 100) / 1000 for share in (50, 95, 99)},
        "statuses": dict(_statuses),
    }
    Path(os.environ["CHORUS_FIGURES"]).write_text(json.dumps(figures))
