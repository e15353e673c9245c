"""Documents of a BioImage.IO package: provenance and documentation, from an ensemble's `about`."""

from __future__ import annotations

import re
from typing import Any

from chorus.pipeline.bioimageio.export_tensors import EPS
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.core.provenance import About
from chorus.pipeline.ensembles.ensemble import Ensemble


def provenance(about: About) -> dict[str, Any]:
    """Return the fields of the description that `about` provides."""
    from bioimageio.spec.dataset.v0_3 import DatasetDescr

    content: dict[str, Any] = {
        "authors": [person.model_dump(exclude_none=True) for person in about.authors],
        "cite": [citation.model_dump(exclude_none=True) for citation in about.cite],
        "license": about.licence,
    }
    if about.data:
        first = about.data[0]
        images = "" if first.images is None else f"{first.images} images. "
        others = f"Besides: {', '.join(one.name for one in about.data[1:])}." if len(about.data) > 1 else ""
        fields = {
            "name": re.sub(r"[^A-Za-z0-9_+\- ()]", " ", first.name)[:128].ljust(5, "_"),
            "description": f"{images}{others}".strip(),
            "license": first.licence,
            "source": first.url,
        }
        content["training_data"] = DatasetDescr(**fields)  # type: ignore[arg-type]  # its validators take strings
    return content


def readme(ensemble: Ensemble, about: About, title: str) -> str:
    """Return the package's documentation as Markdown."""
    spec = ensemble.spec
    pixel = spec.input.plane_pixel_um
    size = "as they are" if pixel is None else f"at {pixel:g} um a pixel"
    scores = [
        f"- {data}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()) for data, values in about.scores.items()
    ]
    scores += [
        f"- sentinel {one.name} (in the ensemble, not in this package): "
        + ", ".join(f"Dice of {k} {v:.3f}" for k, v in one.dice.items())
        for one in spec.sentinels
    ]
    data = [
        f"- {one.name}" + "".join(f", {part}" for part in (one.url, one.licence) if part)
        + (f", {one.images} images" if one.images is not None else "")
        for one in about.data
    ]  # fmt: skip
    flows = "\nThe last two channels are flows (y, x), 5 times the unit vector.\n" if FLOWS in spec.answers else ""
    parts = {
        f"# {title}": about.description,
        "## Intended use": about.intended_use or "Not stated.",
        "## Limits": about.limits or "Not stated.",
        "## Input and output": f"Channels {', '.join(spec.input.channels)}, {size}, in tiles of {spec.tile} pixels "
        f"with an overlap of {spec.overlap:g}. Classes: {', '.join(one.name for one in spec.classes)}.\n{flows}\n"
        f"Of Chorus ensemble {spec.name} (hash {ensemble.hash}). Chorus divides by a range or a standard deviation as "
        f"it is; this package adds {EPS:g} to it, and fixed ones get 1e-6 from bioimageio.core, so that results differ "
        "by less than 1e-5 where images have contrast.",
        "## Training data": "\n".join(data) or "Not stated.",
        "## Validation": "\n".join(scores)
        or "No scores on images that nobody trained on are stated; compare with your own annotations before use.",
    }
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in parts.items()) + "\n"
