"""``chorus unlock``: free an output whose run was killed on another machine."""

from __future__ import annotations

from typing import Annotated

import typer


def unlock(out: Annotated[str, typer.Argument(help="An output that says that another run is writing there.")]) -> None:
    """Remove the lock that a killed run left in an output.

    Needed only if you do not want to wait: a run that has been silent for 90 s loses its lock to the next one, and one
    that was killed on this machine at once. If that run lives after all, it stops with exit code 3 at its next write.
    The lock of a process that lives on a local disk stays.

    **Examples**

    `chorus unlock gs://lab/results`
    """
    from chorus.cluster.runtime.output_lock import free_lock

    holder = free_lock(out)
    print(f"{out}: removed the lock of {holder}" if holder else f"{out}: is not locked")
