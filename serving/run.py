"""Starts Ray Serve with the application and keeps it running until it is told to stop."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack

from ray import serve as ray_serve

from chorus.cluster.runtime import session
from chorus.pipeline.errors import RefusedError
from chorus.serving.app import NAME, build
from chorus.serving.contract.settings import ServeSettings


def serve(
    settings: ServeSettings, port: int, address: str | None, announce: Callable[[ServeSettings, str], None]
) -> None:
    """Serve until SIGINT or SIGTERM.

    Parameters
    ----------
    address : a running Ray cluster; None starts one here
    announce : called with the settings and the URL once the server answers

    Raises
    ------
    RefusedError : settings, ensembles or machine do not fit
    """
    if settings.reprocess and address is None:
        raise RefusedError("--reprocess: runs are jobs of a Ray cluster; give its --address, such as `auto`")
    with ExitStack() as stack:
        if settings.jobs_url is None and address is None:  # of one machine all processes see its folders
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chorus-jobs-"))
            settings = settings.model_copy(update={"jobs_url": folder})
        _serve(settings, port, address, announce)


def _serve(
    settings: ServeSettings, port: int, address: str | None, announce: Callable[[ServeSettings, str], None]
) -> None:
    application = build(settings.model_dump())
    ended = threading.Event()
    session.start(address, staged=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda *_: ended.set())
        try:
            ray_serve.start(http_options={"host": settings.host, "port": port})
            ray_serve.run(application, name=NAME, route_prefix="/")
        except RuntimeError as error:
            line = str(error).strip().splitlines()[0]
            raise RefusedError(f"serve: does not start ({line}); is port {port} taken, or the machine full?") from error
        announce(settings, f"http://{settings.host}:{port}")
        ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ray_serve.shutdown()
        session.stop()
