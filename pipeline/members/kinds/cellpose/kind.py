"""The kind of members that are networks of Cellpose: what its files are, and how they are described."""

from __future__ import annotations

import hashlib

from chorus.pipeline.core.provenance import About, Citation, DataReference
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind
from chorus.pipeline.members.kinds.cellpose import residual as cellpose_residual
from chorus.pipeline.members.kinds.cellpose.member import CellposeMember, read_state_dict
from chorus.pipeline.members.kinds.cellpose.network import DIAMETER_PX, NAMES, Design
from chorus.pipeline.members.kinds.cellpose.residual import ResidualDesign
from chorus.pipeline.members.kinds.cellpose.size import read_size_model, size_model_url
from chorus.pipeline.members.outputs import ClassesOutput, FlowsOutput
from chorus.pipeline.members.weight_file import WeightFile


def describe(url: str) -> ModelDescription:
    """Describe a file of Cellpose as a member, reading all of it; raise RefusedError if it is none."""
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}; give a file or a URL") from error
    state = read_state_dict(url, data)
    size = size_model_url(url) if storage.exists(size_model_url(url)) else None
    if size is not None:
        of_size = storage.read_bytes(size)
        read_size_model(size, of_size)
    entry = CellposeMember(
        kind="cellpose",
        weights=url,
        sha256=hashlib.sha256(data).hexdigest(),
        size_sha256=None if size is None else hashlib.sha256(of_size).hexdigest(),
    )
    if state.keys() >= cellpose_residual.NAMES:
        residual = ResidualDesign.of(url, state)
        return _described(entry, residual.about, cellpose_residual.TILE, residual.diameter_px, lengths=True)
    design = Design.of(url, state)
    about = About(
        description=f"A network of Cellpose 4 ({design.backbone}): cell probability and flows.",
        limits=(
            "Cellpose's own weights (cpsam, cpsam_v2, cpdino), and so what was fine-tuned from them, were trained on "
            "data licensed under CC-BY-NC: clear commercial use with their authors."
        ),
        data=[DataReference(name="Cellpose-SAM", url="https://github.com/MouseLand/cellpose", licence="CC-BY-NC")],
        cite=[
            Citation(
                text="Pachitariu, Rariden and Stringer. Cellpose-SAM: superhuman generalization for cellular "
                "segmentation. bioRxiv, 2025.",
                doi="10.1101/2025.04.28.651001",
            )
        ],
    )
    return _described(entry, about, design.tile, DIAMETER_PX, lengths=False)


def _described(entry: CellposeMember, about: About, tile: int, diameter: float, *, lengths: bool) -> ModelDescription:
    return ModelDescription(
        entry=entry,
        name=storage.basename(entry.weights),
        classes=["background", "cell"],
        activation="sigmoid",
        outputs=(ClassesOutput(), FlowsOutput(lengths=lengths)),
        tile=tile,
        diameter_px=diameter,
        about=about,
    )


def _recognises(file: WeightFile) -> bool:
    names = {name.removeprefix("module.") for name in file.strings}
    return not file.code and (names >= NAMES or names >= cellpose_residual.NAMES)


KIND = MemberKind(
    entry=CellposeMember,
    describe=lambda url, _: (describe(url),),
    recognises=_recognises,
)
