"""Decisions: whatever the order in which entries are seen, two reviewers see the same, and nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import shutil
import threading
import uuid
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.serving.review.app import review_app
from chorus.serving.review.decisions import DECISIONS, DecisionLog, Entry, state_of
from chorus.serving.review.run import decided_images
from tests.support.reviews import FIELDS, SLIDE, write_review_run

REVIEWERS = ("ann", "bob", "cay")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    """Decisions of three reviewers on an image, and undoing of some, as their pages would write them."""
    entries: list[Entry] = []
    for number in range(draw(st.integers(0, 12))):
        reviewer = draw(st.sampled_from(REVIEWERS))
        own = [entry.id for entry in entries if entry.reviewer == reviewer and entry.decision]
        content: dict[str, object] = {
            "id": f"20260102T030405.{number:06d}Z-00",
            "run": "r",
            "reviewer": reviewer,
            "image": "i",
        }
        if own and draw(st.booleans()):
            content["undoes"] = draw(st.sampled_from(own))
        else:
            content["decision"] = draw(st.sampled_from(DECISIONS))
        entries.append(Entry.model_validate(content))
    return entries


def replayed(entries: list[Entry]) -> dict[str, str]:
    """What each reviewer says, by a plain loop: a list of decisions from which undone ones are struck."""
    said: dict[str, list[tuple[str, str]]] = {name: [] for name in REVIEWERS}
    for entry in entries:
        own = said[entry.reviewer]
        if entry.undoes:
            said[entry.reviewer] = [one for one in own if one[0] != entry.undoes]
        elif entry.decision:
            own.append((entry.id, entry.decision))
    return {name: own[-1][1] for name, own in said.items() if own}


@given(histories(), st.randoms())
def test_what_holds_does_not_depend_on_the_order_in_which_entries_are_seen(
    entries: list[Entry], random: object
) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = state_of(shuffled)
    expected = replayed(entries)
    assert {verdict.reviewer: verdict.decision for verdict in found.verdicts} == expected
    assert found.conflict == (len(set(expected.values())) > 1)
    assert found.decision == (max(found.verdicts, key=lambda v: v.id).decision if expected else None)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_two_reviewers_at_once_lose_nothing_and_see_the_same(kind: str, tmp_path: Path) -> None:
    out = str(tmp_path) if kind == "folder" else f"memory://{uuid.uuid4().hex}"
    logs = [DecisionLog(out, "r") for _ in range(2)]

    def work(log: DecisionLog, reviewer: str) -> None:
        for number in range(40):
            entry = log.decide(
                reviewer, f"image-{number % 10}", DECISIONS[(number + len(reviewer)) % 3], f"note {number}"
            )
            if number % 4 == 3:
                log.undo(reviewer, entry.id)

    threads = [threading.Thread(target=work, args=each) for each in zip(logs, ("ann", "bobby"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.refresh(now=True)
    fresh = DecisionLog(out, "r")
    fresh.refresh()
    assert fresh.version == logs[0].version == logs[1].version == 2 * (40 + 10)
    assert fresh.states() == logs[0].states() == logs[1].states()
    assert any(state.conflict for state in fresh.states().values())


def test_who_spoke_last_holds_even_where_clocks_differ(tmp_path: Path) -> None:
    ann, bob = DecisionLog(str(tmp_path), "r"), DecisionLog(str(tmp_path), "r")
    day = tmp_path / "review" / "decisions" / "2099-01-01"
    day.mkdir(parents=True)
    ahead = {
        "id": "20990101T000000.000000Z-00000000",
        "run": "r",
        "reviewer": "ann",
        "image": "i",
        "decision": "accept",
    }
    (day / f"{ahead['id']}.json").write_text(json.dumps(ahead))
    bob.refresh()
    bob.decide("bob", "i", "reject")
    ann.refresh()
    state = ann.state("i")
    assert state is not None
    assert state.decision == "reject"


def test_only_ones_own_decision_is_undone_and_damaged_entries_are_named(tmp_path: Path) -> None:
    log = DecisionLog(str(tmp_path), "r")
    entry = log.decide("ann", "i", "accept")
    with pytest.raises(RefusedError, match="is ann's, and only ann can undo it"):
        log.undo("bob", entry.id)
    with pytest.raises(RefusedError, match="is not known here"):
        log.undo("ann", "nothing")
    storage.write_bytes(storage.join(log.url, "2026-01-01", "torn.json"), b'{"id": "2026')
    other = DecisionLog(str(tmp_path), "r")
    other.refresh()
    other.refresh(now=True)
    assert other.notes == ["review/decisions/.../torn.json is damaged and left out; mend it or remove it"]
    assert other.states() == log.states()


def test_decisions_on_results_that_were_replaced_hold_no_more(out: Path) -> None:
    body = {"image": SLIDE, "decision": "accept", "reviewer": "ann"}
    TestClient(review_app(str(out))).post("/api/decisions", json=body)
    assert decided_images(str(out), "accept") == [SLIDE]
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(run | {"started": "2026-02-02T00:00:00+00:00"}))
    about = TestClient(review_app(str(out))).get("/api/run").json()
    assert about["decisions"]["none"] == 10
    assert about["notes"] == ["1 decisions on earlier results in this place are left out"]
    with pytest.raises(RefusedError, match="no image is decided 'accept'"):
        decided_images(str(out), "accept")


def test_the_page_decides_undoes_and_says_who_disagrees(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus.serving.review.decisions._PAUSE", 0.0)
    ann, bob = (TestClient(review_app(str(out))) for _ in range(2))
    body = {"image": SLIDE, "decision": "accept", "reviewer": "ann"}
    first = ann.post("/api/decisions", json=body).json()
    assert first["state"]["decision"] == "accept"
    assert first["counts"] == {"accept": 1, "reject": 0, "correct-later": 0, "none": 9, "conflict": 0}
    second = bob.post("/api/decisions", json=body | {"decision": "correct-later", "reviewer": "bob", "note": "=1+1"})
    assert second.json()["state"]["conflict"] is True
    news = ann.get("/api/decisions", params={"since": 1}).json()
    assert [one["reviewer"] for one in news["images"][SLIDE]["verdicts"]] == ["bob", "ann"]
    found = ann.get("/api/images", params={"decision": "conflict"}).json()["rows"]
    assert [row["name"] for row in found] == [SLIDE]
    table = list(csv.DictReader(io.StringIO(ann.get("/api/decisions.csv").text)))
    assert [(row["name"], row["decision"], row["note"]) for row in table] == [(SLIDE, "correct-later", "'=1+1")]
    assert table[0]["conflict"] == "bob: correct-later; ann: accept"
    assert decided_images(str(out), "correct-later") == [SLIDE]
    back = bob.post("/api/undo", json={"id": second.json()["id"], "reviewer": "bob"}).json()
    assert (back["state"]["decision"], back["state"]["conflict"]) == ("accept", False)


def test_a_list_of_undecided_images_stays_the_same_while_one_decides(out: Path) -> None:
    client = TestClient(review_app(str(out)))
    query = {"decision": "none", "limit": 4}
    first = client.get("/api/images", params=query).json()
    for row in first["rows"]:
        client.post("/api/decisions", json={"image": row["name"], "decision": "accept", "reviewer": "ann"})
    same = client.get("/api/images", params=query | {"offset": 4, "log": first["log"]}).json()
    anew = client.get("/api/images", params=query).json()
    assert same["total"] == 10
    assert anew["total"] == 6
    assert [row["name"] for row in same["rows"]] == [row["name"] for row in anew["rows"]]


def test_what_is_not_allowed_is_refused(out: Path) -> None:
    looking, client = TestClient(review_app(str(out), writable=False)), TestClient(review_app(str(out)))
    body = {"image": SLIDE, "decision": "accept", "reviewer": "ann"}
    assert looking.post("/api/decisions", json=body).status_code == 403
    assert client.post("/api/decisions", json=body | {"image": "../run.json"}).status_code == 404
    assert client.post("/api/decisions", json=body | {"decision": "perhaps"}).status_code == 422
    assert client.post("/api/decisions", json=body | {"reviewer": "  "}).status_code == 422
    # A form of a page elsewhere cannot ask in JSON.
    form = client.post("/api/decisions", content=json.dumps(body), headers={"Content-Type": "text/plain"})
    assert form.status_code == 422
    assert not (out / "review").exists()
    assert client.get("/api/images", params={"decision": "any"}).json()["total"] == 0
    assert FIELDS[0] in {row["name"] for row in client.get("/api/images").json()["rows"]}


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://testserver.evil.example"}, 403),
        ({"Origin": "http://testserver:81"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, 403),
    ],
)
def test_pages_of_other_sites_decide_nothing(out: Path, headers: dict[str, str], status: int) -> None:
    client = TestClient(review_app(str(out)))
    body = {"image": SLIDE, "decision": "accept", "reviewer": "ann"}
    answer = client.post("/api/decisions", json=body, headers=headers)
    assert answer.status_code == status
    undo = client.post("/api/undo", json={"id": "none", "reviewer": "ann"}, headers=headers)
    assert (undo.status_code == 403) == (status == 403)
