"""The declaration of a kind of member; everything that depends on kinds derives from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.weight_file import WeightFile

Entry = TypeVar("Entry", bound=MemberEntry)


@dataclass(frozen=True)
class Network:
    """Facts missing in a file: which network it is of, and whether its code may run.

    Attributes
    ----------
    architecture, encoder : of segmentation-models-pytorch
    factory : ``package.module:function`` that builds the network
    options : of the architecture, or arguments of the factory
    """

    architecture: str | None = None
    encoder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trust_code: bool = False
    factory: str | None = None


@dataclass(frozen=True)
class PackedModule:
    """A network that a library builds by a name: it goes into a package as a state dict, and as ONNX.

    Attributes
    ----------
    module : the network, which can be exported
    library, callable, arguments : what builds it: ``library.callable(**arguments)``
    requirement : of pip, such as ``segmentation-models-pytorch==0.5.0``
    """

    module: torch.nn.Module
    library: str
    callable: str
    arguments: Mapping[str, Any]
    requirement: str


@dataclass(frozen=True)
class PackedTorchScript:
    """A TorchScript file that goes into a package as it is."""

    data: bytes


@dataclass(frozen=True)
class PackedOnnx:
    """An ONNX file that goes into a package as it is."""

    data: bytes


@dataclass(frozen=True)
class PackedPackage:
    """A member that is a package already, and is copied.

    Attributes
    ----------
    url : of an archive or a folder
    """

    url: str


Packed = PackedModule | PackedTorchScript | PackedOnnx | PackedPackage
"""How a member goes into a BioImage.IO package (`chorus.pipeline.bioimageio.export`)."""


@dataclass(frozen=True)
class MemberKind(Generic[Entry]):
    """A kind of member: its configuration, how its files are recognised and described, loaded and packed.

    Attributes
    ----------
    entry : the member as ``ensemble.yaml`` has it; its field ``kind`` is a `Literal` of one name, and it loads itself
    describe : what the networks at a URL say of themselves; raises RefusedError where they are not of this kind
    own_suffixes : of files that no other kind has, lower case with the dot: enough to recognise them
    suffixes : of files that are taken from a folder of weights
    recognises : whether weights look like this kind, where the suffix does not tell; it must not run them
    is_package : whether a folder that holds these names is one network, rather than a folder of several
    names : whether its weights may be a name in a collection instead of a path
    volumes : whether its networks may take tiles of volumes, (batch, channels, z, y, x)
    pack : as what a loaded member goes into a BioImage.IO package; None where it cannot
    """

    entry: type[Entry]
    describe: Callable[[str, Network], tuple[ModelDescription, ...]]
    own_suffixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    recognises: Callable[[WeightFile], bool] | None = None
    is_package: Callable[[Sequence[str]], bool] | None = None
    names: bool = False
    volumes: bool = False
    pack: Callable[[Entry, Member, LoadRequest], Packed] | None = None

    @property
    def name(self) -> str:
        """Name of the kind in ``ensemble.yaml``; raises TypeError if the entry does not define it."""
        return kind_name(self.entry)

    def recognised(self, file: WeightFile) -> bool:
        """Return whether `file` is of this kind, by its suffix or its content."""
        return file.suffix in self.own_suffixes or bool(self.recognises and self.recognises(file))


def kind_name(entry: type[MemberEntry]) -> str:
    """Return the one name in the field ``kind`` of `entry`; raise TypeError if it is no `Literal` of one name."""
    names: tuple[object, ...] = getattr(entry.model_fields["kind"].annotation, "__args__", ())
    name = names[0] if len(names) == 1 else None
    if not isinstance(name, str):
        raise TypeError(f'{entry.__name__}.kind is no Literal of one name; write `kind: Literal["..."]`')
    return name
