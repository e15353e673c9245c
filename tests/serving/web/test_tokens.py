"""Who is answered: tokens by their hashes, bounds per token, and nobody from elsewhere without."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from chorus.pipeline.errors import RefusedError
from chorus.serving.contract.settings import parse_settings
from chorus.serving.web.tokens import Gatekeeper, add_token, read_tokens
from tests.support.servers import client_of


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[TestClient, str]]:
    """A server that all machines reach, and a token that it knows."""
    file = str(tmp_path / "tokens.json")
    token = add_token(file, "microscope-1", 5)
    with client_of("203.0.113.9", "http://chorus.example", host="0.0.0.0", token_file=file) as client:
        yield client, token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "chorus.example"])
def test_off_this_machine_it_refuses_to_start_without_tokens(host: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="tokens"):
        parse_settings({"ensemble": "nuclei/", "host": host})
    empty = tmp_path / "tokens.json"
    empty.write_text('{"tokens": []}')
    with pytest.raises(RefusedError, match="no token"):
        read_tokens(str(empty))


def test_without_tokens_only_this_machine_is_answered_whatever_it_listens_to() -> None:
    assert client_of().get("/v1/health").status_code == 200
    assert client_of("203.0.113.9").get("/v1/health").status_code == 403
    assert client_of(base="http://evil.example").get("/v1/health").status_code == 403


def test_a_known_token_is_let_in_and_no_other(guarded: tuple[TestClient, str]) -> None:
    client, token = guarded
    assert client.get("/v1/health").status_code == 200
    for wrong in (None, "", "Bearer", f"Bearer {token}x", f"Bearer {token[:-1]}", f"Token {token}", "Basic !!"):
        answer = client.get("/metrics", headers={} if wrong is None else {"Authorization": wrong})
        assert answer.status_code == 401, wrong
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_more_requests_than_a_token_may_send_wait(guarded: tuple[TestClient, str]) -> None:
    client, token = guarded
    headers = {"Authorization": f"Bearer {token}"}
    answers = [client.get("/metrics", headers=headers) for _ in range(8)]
    assert [answer.status_code for answer in answers].count(429) >= 2
    refused = answers[-1]
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_only_the_hash_of_a_token_is_kept_in_a_file_of_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = [add_token(str(file), name, 100) for name in ("a", "b")]
    assert all(token not in file.read_text() for token in tokens)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    gatekeeper = Gatekeeper(read_tokens(str(file)))
    assert [gatekeeper.check(f"Bearer {token}") for token in tokens] == ["a", "b"]
    with pytest.raises(RefusedError, match="already"):
        add_token(str(file), "a", 100)
    file.write_text(json.dumps({"tokens": [{"name": "a", "sha256": "short"}]}))
    with pytest.raises(RefusedError, match="sha256"):
        read_tokens(str(file))


def test_only_pages_of_origins_that_are_allowed_may_call(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    token = add_token(file, "page", 100)
    client = client_of("203.0.113.9", "http://chorus.example", token_file=file, cors=["https://lab.example"])
    asked = {"Origin": "https://lab.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/predict", headers=asked).headers["access-control-allow-origin"] == "https://lab.example"
    other = client.options("/v1/predict", headers=asked | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-npy"}
    sent = client.post("/v1/predict", content=b"x", headers=headers | {"Origin": "https://evil.example"})
    assert sent.status_code == 403
    sent = client.post("/v1/predict", content=b"x", headers=headers | {"Origin": "https://lab.example"})
    assert sent.status_code == 415


def test_not_ready_is_said_with_a_time_to_come_back() -> None:
    client = client_of()
    assert client.get("/v1/ready").status_code == 503
    answer = client.get("/v1/ensembles")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
