"""Members whose network a function of an installed package builds: the door for networks of research code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.members.contract import LoadRequest, Member, fetch_weights
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind, Network
from chorus.pipeline.members.kinds.smp import state_dict
from chorus.pipeline.members.selection import ExportEntry, SelectedMember
from chorus.pipeline.members.weight_file import read, stem

FACTORY = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


class PythonMember(ExportEntry):
    """``{kind: python, factory: "package.module:function", options: {}, weights: m.safetensors, sha256: ...}``.

    Attributes
    ----------
    factory : a function or class of an installed package that returns a `torch.nn.Module`; it takes (batch, channels,
        y, x) or (batch, channels, z, y, x) and keeps a tile's size
    options : arguments of the factory, by name
    """

    kind: Literal["python"]
    factory: Annotated[str, Field(pattern=FACTORY)]
    options: dict[str, Any] = Field(default_factory=dict)

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Build the network and load its weights.

        Raises
        ------
        RefusedError
            Without ``--trust-code``, if there is no such factory, if it fails, or if the weights do not fit.
        """
        if not asked.trust_code:
            raise RefusedError(
                f"{asked.url}: its network is built by the code of {self.factory}; where you trust that, run the same "
                f"command with --trust-code"
            )
        state = state_dict(asked.url, fetch_weights(asked.url, self.sha256, beside=asked.beside))
        module = self._built(asked.url)
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise RefusedError(
                f"{asked.url}: these weights are not of what {self.factory} builds ({' '.join(lines[:2])[:200]}); "
                f"correct factory or options of the member in ensemble.yaml"
            ) from error
        return SelectedMember(module, device, self, asked.url)

    def _built(self, url: str) -> torch.nn.Module:
        factory = self._factory(url)
        try:
            module = factory(**self.options)
        except Exception as error:  # code of others
            raise RefusedError(
                f"{url}: {self.factory} does not build a network with the options {self.options} "
                f"({type(error).__name__}: {first_line(error)}); correct the member in ensemble.yaml"
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise RefusedError(
                f"{url}: {self.factory} returns {type(module).__name__}, not a torch.nn.Module; correct the factory"
            )
        return module

    def _factory(self, url: str) -> Callable[..., object]:
        name, _, path = self.factory.partition(":")
        try:
            found: Any = import_module(name)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:  # code of others
            raise RefusedError(
                f"{url}: {self.factory} cannot be imported ({type(error).__name__}: {first_line(error)}); install its "
                f"package on every machine that runs this ensemble, or correct the factory in ensemble.yaml"
            ) from error
        if not callable(found):
            raise RefusedError(f"{url}: {self.factory} is no function; correct the factory in ensemble.yaml")
        return found  # type: ignore[no-any-return]


def describe(url: str, network: Network) -> tuple[ModelDescription, ...]:
    """Describe a state dict as a member; raise RefusedError if `network` does not name its factory."""
    if network.factory is None:
        raise RefusedError(f"{url}: a state dict does not say what builds its network; add --factory PACKAGE:FUNCTION")
    data = read(url)
    state_dict(url, data)
    entry = PythonMember(
        kind="python",
        factory=network.factory,
        options=dict(network.options),
        weights=url,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return (ModelDescription(entry=entry, name=stem(url)),)


KIND = MemberKind(entry=PythonMember, describe=describe, volumes=True)
