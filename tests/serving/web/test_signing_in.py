"""Who is let in to the review page behind a server: a form, a cookie of the page alone, and no page of another site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from chorus.serving.web.sign_in import SIGN_IN, SIGN_OUT
from chorus.serving.web.tokens import add_token
from tests.support.reviews import SLIDE, write_review_run
from tests.support.servers import client_of

BASE = "https://chorus.example"
OWN = {"Origin": BASE, "Sec-Fetch-Site": "same-origin"}
DECIDED = {"image": SLIDE, "decision": "accept", "reviewer": "somebody else"}
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def door(out: Path, tmp_path: Path) -> Iterator[tuple[TestClient, str]]:
    """A server that all machines reach, with a run behind it, and the token of ann."""
    file = str(tmp_path / "tokens.json")
    token = add_token(file, "ann", 60)
    with client_of("203.0.113.9", BASE, host="0.0.0.0", token_file=file, results=str(out)) as client:
        client.follow_redirects = False
        yield client, token


def sign_in(client: TestClient, token: str) -> str:
    """The cookie of the browser that signed in, as it was set."""
    answer = client.post(SIGN_IN, data={"token": f" {token}\n"}, headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/review/")
    return answer.headers["set-cookie"]


def test_a_browser_is_led_to_the_form_and_a_program_is_told(door: tuple[TestClient, str]) -> None:
    client, _ = door
    for page in ("/review", "/review/"):
        answer = client.get(page, headers=HTML)
        assert (answer.status_code, answer.headers["location"]) == (303, SIGN_IN)
    form = client.get(SIGN_IN)
    assert form.status_code == 200
    assert "form-action 'self'" in form.headers["content-security-policy"]
    told = client.get("/review/api/run")
    assert (told.status_code, told.headers["www-authenticate"].split()[0]) == (401, "Bearer")
    assert client.get("/review/static/review.css").status_code == 200  # of the form
    assert client.get("/review/static/../api/run").status_code == 401


def test_the_cookie_opens_the_page_alone_and_no_script_reads_it(door: tuple[TestClient, str]) -> None:
    client, token = door
    cookie = sign_in(client, token)
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert parts == {"httponly", "samesite=strict", "secure", "path=/review"}
    assert client.get("/review/").status_code == 200
    assert client.get("/review/api/run").json()["reviewer"] == "ann"
    # Also where a client sends it there: it is none of the API's.
    assert client.get("/metrics", headers={"Cookie": cookie.split(";")[0]}).status_code == 401
    assert client.post(SIGN_OUT, headers=OWN).status_code == 204
    assert client.get("/review/", headers=HTML).status_code == 303


@pytest.mark.parametrize("token", ["", "wrong", "chorus_" + "x" * 43, "a; b", "\x00", "x" * 4000])
def test_another_token_sets_no_cookie(door: tuple[TestClient, str], token: str) -> None:
    client, _ = door
    answer = client.post(SIGN_IN, data={"token": token}, headers=OWN)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text


def test_who_is_not_known_yet_may_not_send_much(door: tuple[TestClient, str]) -> None:
    client, _ = door
    assert client.post(SIGN_IN, content=b"token=" + b"x" * 100_000, headers=OWN).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://chorus.example.evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": BASE, "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_another_page_cannot_decide_with_the_cookie_nor_sign_anybody_in(
    door: tuple[TestClient, str], headers: dict[str, str]
) -> None:
    client, token = door
    sign_in(client, token)
    assert client.post("/review/api/decisions", json=DECIDED, headers=headers).status_code == 403
    assert client.post(SIGN_IN, data={"token": token}, headers=headers).status_code == 403
    assert client.get("/review/api/run").json()["decisions"]["accept"] == 0


def test_decisions_carry_the_name_of_the_token_whatever_the_page_says(door: tuple[TestClient, str]) -> None:
    client, token = door
    sign_in(client, token)
    answer = client.post("/review/api/decisions", json=DECIDED, headers=OWN)
    assert [verdict["reviewer"] for verdict in answer.json()["state"]["verdicts"]] == ["ann"]
    undone = client.post("/review/api/undo", json={"id": answer.json()["id"], "reviewer": "x"}, headers=OWN)
    assert undone.json()["state"]["decision"] is None
    # A program says who it is with each request, and no page can have it do so.
    bearer = {"Authorization": f"Bearer {token}"}
    client.cookies.clear()
    assert client.post("/review/api/decisions", json=DECIDED, headers=bearer).status_code == 200


def test_looking_is_bounded_apart_from_asking(door: tuple[TestClient, str]) -> None:
    client, token = door
    sign_in(client, token)
    assert {client.get("/review/api/run").status_code for _ in range(150)} == {200}
    bearer = {"Authorization": f"Bearer {token}"}
    assert 429 in {client.get("/metrics", headers=bearer).status_code for _ in range(80)}


def test_without_tokens_nobody_is_asked(out: Path) -> None:
    client = client_of(results=str(out))
    client.follow_redirects = False
    assert client.get(SIGN_IN).headers["location"] == "/review/"
    assert client.get("/review/").status_code == 200
    assert client.get("/review/api/run").json()["reviewer"] is None
