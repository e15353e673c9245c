"""Parses a request: its image from a form, a body or a URL, its options, and the format of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import ANSWERS, JSON, PredictOptions, PredictRequest
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.contract.sources import Source, Stored, check_path, check_source
from chorus.serving.web.decoding import MEDIA, decode

_LISTS = ("channels", "augmentations", "outputs")
_RAW = (*MEDIA, "application/octet-stream")


async def read_request(request: Request, settings: ServeSettings) -> tuple[Source, PredictOptions]:
    """Return the image and the options of a request.

    Raises
    ------
    RequestError
        400, 403, 413, 415 or 422, with the reason.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        return await _by_url(request, settings)
    if kind == "multipart/form-data":
        data, name, options = await _form(request)
    elif kind in _RAW:
        data, name, options = await request.body(), "image", _options(request.query_params)
    else:
        raise RequestError(415, f"send multipart/form-data, {JSON}, or an image as {', '.join(_RAW)}")
    if not data:
        raise RequestError(422, "the image is empty")
    return await asyncio.to_thread(decode, data, name, settings.limits), options


def answer_media(request: Request) -> str:
    """Return the media type that the client accepts, out of `ANSWERS`; raise RequestError 406 if it is none of them."""
    accepted = request.headers.get("accept", "*/*")
    ranked: list[tuple[float, int, str]] = []
    for order, part in enumerate(accepted.split(",")):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((p.partition("=")[2] for p in parameters if p.replace(" ", "").startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        if weight > 0:
            ranked.append((-weight, order, media.lower()))
    for _, _, media in sorted(ranked):
        if media in ("*/*", "application/*"):
            return JSON
        if media in ANSWERS:
            return media
    raise RequestError(406, f"answers are given as {', '.join(ANSWERS)}")


def deadline(request: Request, settings: ServeSettings) -> float:
    """Return the seconds that the answer may take: the client's ``X-Deadline-Seconds``, at most the server's limit."""
    most = settings.limits.deadline_seconds
    given = request.headers.get("x-deadline-seconds")
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise RequestError(422, "X-Deadline-Seconds must be a number of seconds above 0")
    return min(seconds, most)


async def json_body(request: Request, model: type[BaseModel]) -> Any:
    """Parse the body as a model; raise RequestError 400 if it is not JSON, 422 if it is not valid."""
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON") from error
    return _validated(model, content)


async def _by_url(request: Request, settings: ServeSettings) -> tuple[Source, PredictOptions]:
    asked: PredictRequest = await json_body(request, PredictRequest)
    url = await asyncio.to_thread(check_source, asked.source.url, settings.allow)
    return Stored(url, check_path(asked.source.image)), asked.options


async def _form(request: Request) -> tuple[bytes, str, PredictOptions]:
    """Return the file called ``image``, its name, and the options of the other fields."""
    try:
        form = await request.form(max_files=1, max_fields=100, max_part_size=1 << 16)
    except (HTTPException, MultipartParseError, ValueError) as error:
        raise RequestError(400, "the form is damaged, or has more than one file") from error
    file = form.get("image")
    if not isinstance(file, UploadFile):
        raise RequestError(422, "send the image as the file `image` of the form")
    fields = FormData([(name, value) for name, value in form.multi_items() if name != "image"])
    return await file.read(), file.filename or "image", _options(fields)


def _options(fields: FormData | QueryParams) -> PredictOptions:
    """Parse options given as text; lists are given by repetition."""
    content: dict[str, object] = {}
    for name in fields:
        values = fields.getlist(name)
        if name not in _LISTS and len(values) != 1:
            raise RequestError(422, f"{name}: give it once")
        content[name] = values if name in _LISTS else values[0]
    options: PredictOptions = _validated(PredictOptions, content)
    return options


def _validated(model: type[Any], content: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part)[:40] for part in first["loc"])
        raise RequestError(
            422, f"{field}: {first['msg'].removeprefix('Value error, ')}" if field else first["msg"]
        ) from error
