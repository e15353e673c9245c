"""Authentication by bearer tokens: a file holds only their hashes, each with a rate limit of its own.

The file is JSON: ``{"tokens": [{"name": "microscope-1", "sha256": "...", "requests_per_minute": 600}]}``. A token has
256 random bits, so that a plain hash cannot be inverted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chorus.pipeline.errors import RefusedError
from chorus.serving.contract.problems import RequestError

PREFIX = "chorus_"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
# Clients whose rate is remembered; the longest idle one is forgotten first.
_REMEMBERED = 10_000


class Token(BaseModel):
    """The stored entry of a token.

    Attributes
    ----------
    name : for logs and for people
    sha256 : of the token
    requests_per_minute : rate limit in each process of the web application
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int = Field(default=600, ge=1, le=1_000_000)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: list[Token] = []


def read_tokens(path: str) -> list[Token]:
    """Return the tokens of a file; raise RefusedError if it cannot be read, or holds none."""
    try:
        tokens = _File.model_validate_json(Path(path).read_bytes()).tokens
    except OSError as error:
        raise RefusedError(f"--token-file {path}: {error.strerror}; make one with `chorus serve token`") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise RefusedError(
            f"--token-file {path}: {field}: {first['msg']}; make it with `chorus serve token`"
        ) from error
    if not tokens:
        raise RefusedError(f"--token-file {path}: holds no token; make one with `chorus serve token`")
    return tokens


def add_token(path: str, name: str, requests_per_minute: int) -> str:
    """Create a token and store its hash in a file that only its owner can read; return the token, stored nowhere.

    Raises
    ------
    RefusedError
        If the name is taken or invalid, or the file cannot be written.
    """
    file = Path(path)
    tokens = read_tokens(path) if file.exists() else []
    if any(token.name == name for token in tokens):
        raise RefusedError(f"{path}: has a token {name} already; choose another name, or remove that one")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        made = Token(name=name, sha256=_hash(secret), requests_per_minute=requests_per_minute)
    except ValidationError as error:
        first = error.errors()[0]
        raise RefusedError(f"{first['loc'][0]}: {first['msg']}") from error
    content = json.dumps({"tokens": [token.model_dump() for token in [*tokens, made]]}, indent=2)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(content + "\n")
        part.replace(file)
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}; choose another place") from error
    return secret


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass
class _Bucket:
    """A token bucket: the requests that a client may still make; it refills to its limit within a minute."""

    left: float
    at: float


class Rates:
    """Limits requests per client and minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, client: str, per_minute: int) -> None:
        """Count a request; raise RequestError 429 if there were too many."""
        now = time.monotonic()
        with self._lock:
            bucket = self._buckets.pop(client, None) or _Bucket(per_minute, now)
            left = min(per_minute, bucket.left + (now - bucket.at) * per_minute / 60)
            self._buckets[client] = _Bucket(max(0.0, left - 1) if left >= 1 else left, now)
            if len(self._buckets) > _REMEMBERED:
                del self._buckets[next(iter(self._buckets))]
        if left < 1:
            wait = max(1, round((1 - left) * 60 / per_minute))
            raise RequestError(429, f"more than {per_minute} requests a minute", wait)


class Gatekeeper:
    """Identifies clients by their tokens.

    Parameters
    ----------
    tokens : known ones; None if only this machine is answered, and needs none
    """

    def __init__(self, tokens: list[Token] | None) -> None:
        self._tokens = tokens
        self._rates = Rates()

    @property
    def open(self) -> bool:
        """Whether no token is required."""
        return self._tokens is None

    def check(self, authorization: str | None, times: int = 1) -> str:
        """Return the name of the token in a request's ``Authorization``.

        Parameters
        ----------
        times : rate limit of this kind of request, in multiples of the token's; counted separately

        Raises
        ------
        RequestError
            401, it is missing or unknown; 429, there were too many requests.
        """
        if self._tokens is None:
            return "local"
        # Every hash is compared in constant time, so that the time reveals nothing.
        given = _hash(_secret(authorization or ""))
        known = [token for token in self._tokens if hmac.compare_digest(token.sha256, given)]
        if not known:
            raise RequestError(401, "send `Authorization: Bearer TOKEN` with a token that this server knows")
        name, bound = known[0].name, known[0].requests_per_minute
        self._rates.take(f"{name} {times}", bound * times)
        return name


def _secret(authorization: str) -> str:
    kind, _, value = authorization.partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""
