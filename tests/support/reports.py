"""Runs made by hand, from simulated fields and a posterior drawn from their labels, and the page that shows them."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io.models import ClassInfo, ImageLayout
from chorus.pipeline.io.outputs.pyramid import write_pyramid
from chorus.pipeline.io.outputs.writer import prepare_image, write_region
from tests.support.displays import displays_of

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("nucleus", "#4daf4a"))
CHANNELS = ("probability:background", "probability:nucleus", "uncertainty", "epistemic", "aleatoric")
SHAPE = (160, 200)


def write_source(path: Path, pixels: NDArray[np.uint16], axes: str, channels: tuple[str, ...] = ("dna",)) -> None:
    types = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    transformations = [{"type": "scale", "scale": [1.0] * len(axes)}]
    ome = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": a, "type": types[a]} for a in axes],
                "datasets": [{"path": "s0", "coordinateTransformations": transformations}],
            }
        ],
        "omero": {"channels": [{"label": name, "color": "FFFFFF"} for name in channels]},
    }
    group = zarr.create_group(path, attributes={"ome": ome})
    group.create_array("s0", data=pixels, chunks=(*(1,) * (len(axes) - 2), 64, 64), dimension_names=tuple(axes))


def write_result(
    out: Path, name: str, labels: NDArray[np.uint16], channels: tuple[str, ...] = CHANNELS, axes: str = "yx"
) -> None:
    url = str(out / "images" / name)
    layout = ImageLayout(
        url=url,
        labels_url=url,
        labels_ngff="0.5",
        source_url="",
        axes=axes,
        shape=(1,) * (len(axes) - 2) + labels.shape,
        scale=(1.0,) * len(axes),
        translation=(0.0,) * len(axes),
        units=(None,) * len(axes),
        channels=channels,
        dtype="float16",
        classes=CLASSES,
        displays=displays_of(channels),
        chunk=64,
        region=1024,
    )
    mask = labels > 0
    probability = gaussian_filter(mask.astype(np.float32), 1.5)
    uncertainty = probability * (1 - probability)
    maps = dict(
        zip(CHANNELS, (1 - probability, probability, uncertainty, uncertainty / 4, 3 * uncertainty / 4), strict=True)
    )
    posterior = np.stack([maps[c] for c in channels]) if channels else None
    prepare_image(layout)
    write_region(layout, 0, 0, Window.of(0, labels.shape[0], 0, labels.shape[1]), posterior, mask.astype(np.uint8))
    write_pyramid(layout)


def write_tables(out: Path, rows: list[dict[str, object]], run: dict[str, object] | None = None) -> None:
    default = {
        "chorus": "0.1.0",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:06:05+00:00",
        "outcome": "complete",
        "settings": {},
        "ensemble": {
            "name": "nuclei",
            "hash": "0" * 64,
            "members": 3,
            "classes": [{"name": c.name, "color": c.color} for c in CLASSES],
        },
        "summary": {"images": len(rows), "regions": len(rows), "tiles": 30, "seconds": 12.5},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").write_text(json.dumps(default if run is None else run))
    columns = [
        *("image", "source", "name", "status", "message", "uncertainty", "epistemic", "aleatoric"),
        *(
            "pairwise_dice",
            "pairwise_dice:nucleus",
            "area_fraction:nucleus",
            "regions",
            "tiles",
            "seconds",
        ),
    ]
    pd.DataFrame(rows, columns=columns).to_parquet(out / "scores.parquet")


def score(source: Path, name: str, uncertainty: float | None, image: str = "", **more: object) -> dict[str, object]:
    return {
        "image": image,
        "source": str(source),
        "name": name,
        "status": "done",
        "uncertainty": uncertainty,
        "epistemic": uncertainty and uncertainty / 4,
        "aleatoric": uncertainty and 3 * uncertainty / 4,
        "pairwise_dice": 0.9,
        "area_fraction:nucleus": 0.12,
    } | more


class Page(HTMLParser):
    """What a browser would load and read of a page."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.words = ""
        self._tag = ""
        self.source = Path(path).read_text()
        self.feed(self.source)

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script is given."""
        found = re.search(r'<script type="application/json" id="chorus-data">(.*?)</script>', self.source, re.DOTALL)
        assert found
        content: dict[str, Any] = json.loads(found[1])
        return content

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "img":
            self.images.append(dict(attrs))
        # Links are followed only by people.
        self.loads += [v for k, v in attrs if k == "src" and v and not v.startswith("data:")]
        self.loads += [tag] if tag in ("link", "iframe", "object", "embed", "base") else []
        self.headings += [""] if tag in ("h2", "h3") else []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "h3"):
            self._tag = ""

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._tag in ("h2", "h3", "span") and self.headings:
            self.headings[-1] += data.strip()


def part(out: Path, key: str) -> Any:
    """A part of the data that lies beside a page."""
    text = (out / "report" / "data" / f"{key}.js").read_text()
    assert text.isascii()
    found = re.fullmatch(r'chorusData\("([^"]*)",(.*)\);\n', text)
    assert found
    assert found[1] == key
    return json.loads(found[2])


def pixels_of(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB"))
