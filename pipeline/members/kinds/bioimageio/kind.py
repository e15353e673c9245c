"""BioImage.IO packages as a kind of member."""

from __future__ import annotations

from collections.abc import Sequence

from chorus.pipeline.members.kind import MemberKind, PackedPackage
from chorus.pipeline.members.kinds.bioimageio.description import describe
from chorus.pipeline.members.kinds.bioimageio.member import BioimageioMember
from chorus.pipeline.members.weight_file import WeightFile

# As bioimageio.spec names the description within a package.
_DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")


def _is_package(names: Sequence[str]) -> bool:
    return any(name.endswith(_DESCRIPTIONS) for name in names)


def _recognises(file: WeightFile) -> bool:
    return _is_package(file.folder) or _is_package([path.rsplit("/", 1)[-1] for path in file.archive])


KIND = MemberKind(
    entry=BioimageioMember,
    describe=lambda url, _: (describe(url),),
    own_suffixes=(".yaml", ".yml", ".zip"),
    suffixes=(".zip",),
    recognises=_recognises,
    is_package=_is_package,
    names=True,
    pack=lambda _, __, asked: PackedPackage(asked.url),
)
