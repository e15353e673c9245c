"""Label images of finished objects: whether storage still has them as they were written."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.records import StoredObjects
from chorus.cluster.state.ledger import Ledger
from chorus.pipeline.errors import DamagedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.outputs.writer import damaged_results, result_sizes
from chorus.pipeline.io.storage_failures import storage_errors

log = logging.getLogger("chorus")

_AT_ONCE, _BATCH = 16, 1024


def lost_objects(results: Results) -> list[int]:
    """Return the images, ascending, whose label images of objects are missing, cut or changed.

    Sizes are compared, and with `verify` contents. Those that an earlier version of Chorus made are taken as they are.

    Raises
    ------
    OutputError
        If storage does not give what is to be checked.
    """
    lost: list[int] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(results.table), _BATCH):
            some = range(start, min(start + _BATCH, len(results.table)))
            found = zip(some, pool.map(partial(_is_lost, results), some), strict=True)
            lost += [index for index, is_lost in found if is_lost]
    return lost


def _is_lost(results: Results, index: int) -> bool:
    name = results.table.names[index]
    url = Ledger(results.request.out).objects_url(name)
    with storage_errors(url):
        try:
            known = parsed(storage.read_bytes(url), StoredObjects, url, "the objects of this image are made anew")
        except FileNotFoundError:
            return False
        except DamagedError as error:
            log.warning("%s", error)
            return True
    layout = results.layout(index)
    damaged = damaged_results(layout, known.files, result_sizes(layout), contents=results.request.verify)
    if damaged:
        log.warning("the objects of image %s are made anew: %s is missing, cut or changed", name, damaged[0])
    return bool(damaged)
