"""Citations for a run: the program, the methods that it used, and those that its ensemble requests."""

from __future__ import annotations

from chorus.pipeline.core.provenance import Citation

UNCERTAINTY = Citation(
    text="Griebel et al., Deep learning-enabled segmentation of ambiguous bioimages with deepflash2, Nature "
    "Communications 14:1679 (2023)",
    doi="10.1038/s41467-023-36960-9",
)
CELLPOSE = Citation(
    text="Stringer et al., Cellpose: a generalist algorithm for cellular segmentation, Nature Methods 18:100 (2021)",
    doi="10.1038/s41592-020-01018-x",
)


def citations(version: str | None, *, flows: bool, ensemble: list[Citation]) -> list[tuple[str, Citation]]:
    """Return the citations, each with what it was used for.

    Parameters
    ----------
    version : of Chorus
    flows : whether flows were predicted or objects made by following them
    ensemble : citations that the ensemble requests
    """
    chorus = f"Chorus {version or ''}".strip()
    own = Citation(text=f"{chorus}: deep-ensemble segmentation of microscopy images, the Chorus authors (2026)")
    groups = [("this run", own), ("uncertainty and its use", UNCERTAINTY)]
    if flows:
        groups.append(("flows and objects", CELLPOSE))
    return groups + [("the ensemble", each) for each in ensemble]
