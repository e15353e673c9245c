"""Routes of images: thumbnails, layers, tiles, and the values under the pointer."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi import Query as Parameter
from fastapi.responses import Response

from chorus.pipeline.core.fields import CLASS_VARIANCES
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report.thumbnails import draw_thumbnail, thumbnail_url, write_thumbnail
from chorus.serving.review.cache import Cache
from chorus.serving.review.pixels import TILE, Layer, Opened, Pixels, open_layers
from chorus.serving.review.run import ReviewedRun, Snapshot
from chorus.serving.review.schemas import ImageView, LayerEntry, LevelEntry, PixelValues
from chorus.serving.review.tiles import MEDIA, Look, contrast, draw_tile, scale

# Drawing a thumbnail reads three images: only a few at once if a run has no thumbnails.
_DRAWING = 2
_OPEN = 256

_Color = Annotated[str, Parameter(pattern="^[0-9a-fA-F]{6}$")]
_Suffix = Literal["webp", "png"]


def image_routes(run: ReviewedRun, *, writable: bool) -> APIRouter:
    """Return the routes ``api/thumbnails``, ``api/image``, ``api/tiles`` and ``api/values``."""
    router, views = APIRouter(prefix="/api"), _Views(run, writable)

    @router.get("/thumbnails/{name:path}")
    def thumbnail(request: Request, name: str) -> Response:
        snapshot = run.snapshot()
        views.place(snapshot, name)
        return _cached(request, snapshot.version, "image/webp", lambda: views.thumbnail(snapshot, name))

    @router.get("/image/{name:path}", response_model_exclude_unset=True)
    def image(name: str) -> ImageView:
        snapshot = run.snapshot()
        opened = views.opened(snapshot, name)
        row = snapshot.gallery.rows(np.array([views.place(snapshot, name)]))[0]
        layers = [views.describe(snapshot, name, layer) for layer in opened.layers.values()]
        shown = row.model_copy(update={"message": run.said(row.message, name)})
        notes = [run.said(note, name) for note in opened.notes]
        return ImageView(image=shown, tile=TILE, version=snapshot.version, layers=layers, notes=notes)

    @router.get("/tiles/{name:path}/{layer}/{level:int}/{t:int}/{z:int}/{y:int}/{x:int}.{suffix}")
    def tile(
        request: Request,
        name: str,
        layer: str,
        level: int,
        t: int,
        z: int,
        y: int,
        x: int,
        suffix: _Suffix,
        low: float | None = None,
        high: float | None = None,
        color: _Color = "ffffff",
        style: Literal["fill", "line"] = "line",
    ) -> Response:
        snapshot = run.snapshot()
        views.place(snapshot, name)

        def draw() -> bytes:
            shown = views.layer(snapshot, name, layer)
            steps, planes = shown.steps, shown.planes
            inside = level < len(steps) and t < planes[0] and z < planes[1]
            if not inside or y * TILE >= steps[level].height or x * TILE >= steps[level].width:
                raise HTTPException(404, f"{name}: {layer} has no such tile; reload the page")
            appearance = Look(low, high, color, style)
            if shown.kind == "channel" and (low is None or high is None):
                appearance = Look(*views.contrast(snapshot, name, shown), color, style)
            colors = [info.color for info in snapshot.classes]
            return draw_tile(views.pixels, shown, steps[level], (t, z, y, x), appearance, colors, suffix)

        media = MEDIA["png" if layer.startswith("labels-") else suffix]
        return _cached(request, snapshot.version, media, draw)

    @router.get("/values/{name:path}")
    def values(
        name: str,
        y: Annotated[float, Parameter(ge=0, lt=1)],
        x: Annotated[float, Parameter(ge=0, lt=1)],
        t: int = 0,
        z: int = 0,
    ) -> PixelValues:
        return PixelValues(values=views.values(run.snapshot(), name, t, z, y, x))

    return router


class _Views:
    """The opened images of a run, and pictures of them."""

    def __init__(self, run: ReviewedRun, writable: bool) -> None:
        self._run, self._writable = run, writable
        self.pixels = Pixels()
        self._opened: Cache[Opened] = Cache(_OPEN)
        self._contrasts: Cache[tuple[float, float]] = Cache(16 * _OPEN)
        self._drawing = threading.Semaphore(_DRAWING)

    def place(self, snapshot: Snapshot, name: str) -> int:
        """Return the index of an image in the table; raise HTTPException 404 if it is not there."""
        position = snapshot.gallery.places.get(name)
        if position is None:
            raise HTTPException(404, "no image of that name in this run; look for it in the gallery")
        return position

    def opened(self, snapshot: Snapshot, name: str) -> Opened:
        """Open the layers of an image."""
        source, labels = self._urls(snapshot, name)
        results = inside(storage.join(self._run.out, "images"), name)
        return self._opened.get((snapshot.version, name), lambda: open_layers(source, results, labels))

    def layer(self, snapshot: Snapshot, name: str, layer: str) -> Layer:
        """Return a layer of an image; raise HTTPException 404 if there is none of that id."""
        layers = self.opened(snapshot, name).layers
        if layer not in layers:
            raise HTTPException(404, f"{name}: has no layer {layer!r}; choose out of {', '.join(layers)}")
        return layers[layer]

    def thumbnail(self, snapshot: Snapshot, name: str) -> bytes:
        """Return the run's thumbnail; if there is none, draw it and store it for the next request."""
        url = thumbnail_url(self._run.out, name)
        with storage_errors(url):
            try:
                return storage.read_bytes(url)
            except FileNotFoundError:
                pass
        source, labels = self._urls(snapshot, name)
        failed = snapshot.gallery.images.table["status"].iat[self.place(snapshot, name)] == "failed"
        with self._drawing:
            if self._writable and not failed:
                return write_thumbnail(self._run.out, name, source, labels, snapshot.classes)
            return draw_thumbnail(source, inside(storage.join(self._run.out, "images"), name), labels, snapshot.classes)

    def contrast(self, snapshot: Snapshot, name: str, layer: Layer) -> tuple[float, float]:
        """Return the values of a channel that become black and white."""
        key = (snapshot.version, name, layer.id)
        return self._contrasts.get(key, lambda: contrast(self.pixels.sample(layer)))

    def describe(self, snapshot: Snapshot, name: str, layer: Layer) -> LayerEntry:
        """Return the properties of a layer that the viewer needs."""
        steps, (times, depths) = layer.steps, layer.planes
        entry = LayerEntry(
            id=layer.id,
            kind=layer.kind,
            name=layer.name,
            color=layer.color,
            times=times,
            depths=depths,
            levels=[LevelEntry(width=step.width, height=step.height) for step in steps],
            dtype=layer.image.levels[0].dtype,
        )
        if layer.kind == "channel":
            return entry.model_copy(update={"contrast": self.contrast(snapshot, name, layer)})
        if layer.field is None:
            return entry
        low, high, colors = scale(layer)
        of_map = {
            "contrast": (low, high),
            "colors": colors,
            "label": layer.field.channel_label(layer.name),
            "unit": layer.display.unit,
            "uncertainty": layer.field in CLASS_VARIANCES,
        }
        return entry.model_copy(update=of_map)

    def values(self, snapshot: Snapshot, name: str, t: int, z: int, y: float, x: float) -> dict[str, float]:
        """Return the value of every layer at a position, given as fractions of height and width."""
        values = {}
        for layer in self.opened(snapshot, name).layers.values():
            step, (times, depths) = layer.steps[0], layer.planes
            if 0 <= t < max(times, 1) and 0 <= z < max(depths, 1):
                top, left = int(y * step.height), int(x * step.width)
                value = self.pixels.window(layer, step, t, z, Window.of(top, top + 1, left, left + 1))[0, 0]
                values[layer.id] = float(f"{float(value):.6g}")
        return values

    def _urls(self, snapshot: Snapshot, name: str) -> tuple[str, str]:
        """Return the groups of the source and of its labels."""
        source = str(snapshot.gallery.images.table["source_url"].iat[self.place(snapshot, name)])
        in_place = snapshot.document.run.settings.in_place
        return source, source if in_place else inside(storage.join(self._run.out, "images"), name)


def _cached(request: Request, version: str, media: str, make: Callable[[], bytes]) -> Response:
    """Answer with the result of `make`, or 304 if the browser has it: a picture depends only on run and request."""
    key = f"{version} {request.url.path}?{request.url.query}"
    etag = f'"{hashlib.sha256(key.encode()).hexdigest()[:24]}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=3600"}
    if etag in re.split(r"\s*,\s*", request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=media, headers=headers)
