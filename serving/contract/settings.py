"""Settings of a server: ensembles, limits, allowed sources; the arguments of `chorus.serving.app.build`."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.posterior_builder import Precision

NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
MEBI = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Strict):
    """Limits of what is accepted, so that no request takes more than its share.

    Attributes
    ----------
    upload_bytes : of a request's body
    pixels : of an uploaded image, over all planes and channels, before it is decoded
    at_once_pixels : of a plane or window that is answered immediately; larger ones become jobs
    job_pixels : of an image that is processed as a job
    upload_seconds : until a body has arrived
    deadline_seconds : for an answer; default and maximum of a client's deadline
    waiting_tiles : waiting for a device, of all requests of a replica
    ongoing, queued : requests that a replica works on, and that wait for one; more are refused
    jobs : large images that a replica works on or that wait there
    kept_seconds : how long the results of a job are kept
    """

    upload_bytes: int = Field(default=256 * MEBI, ge=1)
    pixels: int = Field(default=256 * MEBI, ge=1)
    at_once_pixels: int = Field(default=4 * MEBI, ge=1)
    job_pixels: int = Field(default=1 << 36, ge=1)
    upload_seconds: float = Field(default=60, gt=0)
    deadline_seconds: float = Field(default=120, gt=0)
    waiting_tiles: int = Field(default=4096, ge=1)
    ongoing: int = Field(default=32, ge=1)
    queued: int = Field(default=64, ge=0)
    jobs: int = Field(default=4, ge=1)
    kept_seconds: float = Field(default=24 * 3600, gt=0)


class ServeSettings(_Strict):
    """Settings of a server.

    Attributes
    ----------
    ensembles : URLs of ensembles by the name that clients use; the first one is the default
    host : address that it listens on, if known; anything but this machine alone requires `token_file`
    token_file : see `chorus.serving.web.tokens`; without it only this machine is answered
    results : URL of a run that ``/review`` shows
    allow : URLs below which images may be read; none by default
    cors : origins whose pages may call; none by default
    jobs_url : where results of large images go, a folder or bucket that all replicas can reach; without it large images
        are refused
    reprocess : gs:// and s3:// URLs below which ``/v1/jobs`` may read images and write results; none by default
    device, threads : of a replica
    precision, backend, effort : as in `chorus predict`; a served image equals that of a run with the same values
    min_replicas, max_replicas, target_ongoing : of each ensemble; replicas scale with the requests
    idle_seconds : of lower load before a replica is removed, since loading an ensemble again takes time
    trust_code : whether code that comes with a member's package may run
    """

    ensembles: dict[str, str] = Field(min_length=1)
    host: str = "127.0.0.1"
    token_file: str | None = None
    results: str | None = None
    allow: list[str] = []
    cors: list[str] = []
    jobs_url: str | None = None
    reprocess: list[str] = []
    device: DeviceKind = "cpu"
    precision: Precision = "fp32"
    backend: Backend | Literal["auto"] = "auto"
    effort: Literal["full", "adaptive"] = "full"
    threads: int = Field(default=1, ge=1)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing: float = Field(default=8, gt=0)
    idle_seconds: float = Field(default=600, ge=0)
    trust_code: bool = False
    limits: Limits = Limits()

    @field_validator("ensembles")
    @classmethod
    def _named(cls, ensembles: dict[str, str]) -> dict[str, str]:
        for name in ensembles:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"{name!r} is not a name: use small letters, digits and dashes, at most 40")
        return ensembles

    @field_validator("allow", "reprocess")
    @classmethod
    def _prefixes(cls, prefixes: list[str]) -> list[str]:
        from chorus.serving.contract.sources import check_prefix

        return [check_prefix(prefix) for prefix in prefixes]

    @field_validator("reprocess")
    @classmethod
    def _buckets(cls, prefixes: list[str]) -> list[str]:
        # A run reads for hours: web addresses that were checked at its begin may have changed meanwhile.
        for prefix in prefixes:
            if not prefix.startswith(("gs://", "s3://", "az://")):
                raise ValueError(f"{prefix}: runs read and write buckets; give a gs://, s3:// or az:// URL")
        return prefixes

    @model_validator(mode="after")
    def _replicas(self) -> ServeSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        if not self.token_file and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, and there are no tokens; make some with "
                f"`chorus serve token` and give their file"
            )
        return self

    @property
    def retry_after(self) -> int:
        """Seconds after which a refused client may try again."""
        return max(1, math.ceil(self.limits.deadline_seconds / 30))


def parse_settings(content: Mapping[str, object]) -> ServeSettings:
    """Validate settings from outside.

    An ensemble may also be given as ``ensemble: URL``; its name is then that of its folder.

    Raises
    ------
    RefusedError
        The message names the field, and what is wrong with it.
    """
    content = dict(content)
    single, several = content.pop("ensemble", None), content.get("ensembles", {})
    if isinstance(single, str) and isinstance(several, dict):
        content["ensembles"] = {name_of(single): single} | several
    elif single is not None:
        raise RefusedError("serve: ensemble: give one URL, or several by their names as ensembles")
    try:
        return ServeSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"{field}: " if field else ""
        raise RefusedError(f"serve: {where}{first['msg'].removeprefix('Value error, ')}") from error


def name_of(url: str) -> str:
    """Return the name of an ensemble that is given only by its URL: that of its folder."""
    path = Path(url.removesuffix("/ensemble.yaml").removesuffix("/"))
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in path.stem.lower())
    return kept.strip("-")[:40].strip("-") or "ensemble"


def is_loopback(host: str) -> bool:
    """Return whether `host` is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
