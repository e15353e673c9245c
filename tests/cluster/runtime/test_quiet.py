"""Ray Data is kept off the terminal, and nothing else is silenced by it."""

from __future__ import annotations

import io
import logging

import ray.data  # noqa: F401  (its loggers are there from here on)

from chorus.cluster.runtime.ray_logging import keep_ray_data_off_the_terminal


def test_ray_datas_console_says_nothing_and_what_others_hung_on_its_logger_goes_on() -> None:
    logger, said, terminal = logging.getLogger("ray.data"), io.StringIO(), io.StringIO()
    [console] = [handler for handler in logger.handlers if handler.name == "console"]
    assert isinstance(console, logging.StreamHandler)
    others = logging.StreamHandler(said)
    logger.addHandler(others)
    stream = console.setStream(terminal)
    try:
        keep_ray_data_off_the_terminal()
        logger.error("a line")
    finally:
        console.setStream(stream)
        logger.removeHandler(others)
    assert (said.getvalue(), terminal.getvalue()) == ("a line\n", "")
