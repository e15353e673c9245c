"""The kinds of members that are installed: those of Chorus, and those that other packages bring as plug-ins.

A plug-in is a package with an entry point in the group ``chorus.members`` that names a
`chorus.pipeline.members.kind.MemberKind`. Its code was installed by the user, and is run as such.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from chorus.pipeline.errors import first_line

if TYPE_CHECKING:  # they need torch; commands that run no network do without
    from chorus.pipeline.members.contract import MemberEntry
    from chorus.pipeline.members.kind import MemberKind

GROUP = "chorus.members"
# Where each kind declares itself as KIND. A file may look like several: the first that recognises it has it.
_BUILT_IN = (
    "bioimageio.kind",
    "cellpose.kind",
    "stardist.kind",
    "nnunet.member",
    "deepflash2",
    "exported",
    "onnx_file",
    "torchscript",
    "python",
    "smp",
    "unet",
)
log = logging.getLogger("chorus")


@dataclass(frozen=True)
class Registry:
    """The kinds that are installed.

    Attributes
    ----------
    built_in, plug_ins : by name
    distributions : by the name of a plug-in's kind: the package that brings it, and its version
    failures : why plug-ins that are installed cannot be used, a sentence each
    """

    built_in: Mapping[str, MemberKind[Any]]
    plug_ins: Mapping[str, MemberKind[Any]]
    distributions: Mapping[str, tuple[str, str]]
    failures: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, MemberKind[Any]]:
        """All of them by name, in alphabetical order."""
        return dict(sorted({**self.built_in, **self.plug_ins}.items()))

    @property
    def unknown(self) -> str:
        """What to say where none of them is meant."""
        failures = "".join(f"; {failure}" for failure in self.failures)
        return (
            f"its kind is missing or none of those that are installed ({', '.join(self.kinds)}); correct it, or "
            f"install the plug-in that brings it{failures}"
        )


@cache
def registry() -> Registry:
    """Return the kinds of this process; plug-ins are searched for once, and those that fail to load are logged."""
    own = [import_module(f"chorus.pipeline.members.kinds.{module}").KIND for module in _BUILT_IN]
    built_in: dict[str, MemberKind[Any]] = {kind.name: kind for kind in own}
    plug_ins: dict[str, MemberKind[Any]] = {}
    distributions: dict[str, tuple[str, str]] = {}
    failures = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            kind = _loaded(point)
            if kind.name in built_in or kind.name in plug_ins:
                raise ValueError(f"there is a kind {kind.name} already")
        except Exception as error:  # noqa: BLE001 - code of others, which must not stop runs without it
            failures.append(f"plug-in {_origin(point)} cannot be used ({first_line(error)}): mend or uninstall it")
            log.warning("%s", failures[-1])
            continue
        plug_ins[kind.name] = kind
        if point.dist is not None:
            distributions[kind.name] = (point.dist.name, point.dist.version)
    return Registry(built_in, plug_ins, distributions, tuple(failures))


def kind_of(entry: MemberEntry) -> MemberKind[Any]:
    """Return the declaration of the kind of `entry`."""
    return registry().kinds[entry.kind]


def plug_in_versions() -> dict[str, str]:
    """Return the versions of the packages that provide kinds of members, by name."""
    return dict(sorted(registry().distributions.values())) if entry_points(group=GROUP) else {}


def _loaded(point: EntryPoint) -> MemberKind[Any]:
    from chorus.pipeline.members.kind import MemberKind

    kind = point.load()
    if not isinstance(kind, MemberKind):
        raise TypeError(f"{point.value} is no chorus.pipeline.members.kind.MemberKind")
    if kind.name != point.name:
        raise ValueError(f"its kind is {kind.name}, its entry point {point.name}")
    return kind


def _origin(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"{point.name}{package} ({point.value})"
