"""The review page's tables: order, filters, pages, distributions and plates, against pandas on the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.reference.words import NO_REFERENCE
from chorus.serving.review.app import review_app
from chorus.serving.review.run import _PAUSE
from tests.support.reviews import EVIL, FIELDS, SLIDE, write_flags, write_many, write_review_run

IMAGES = 6_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestClient, pd.DataFrame]:
    out = tmp_path_factory.mktemp("many")
    scores = write_many(out, IMAGES, 0)
    return TestClient(review_app(str(out))), scores


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def names(client: TestClient, **query: Any) -> list[str]:
    answer = client.get("/api/images", params={"limit": 200, **query})
    assert answer.status_code == 200, answer.text
    return [row["name"] for row in answer.json()["rows"]]


def test_pages_put_together_are_all_images_by_any_score_worst_first(many: tuple[TestClient, pd.DataFrame]) -> None:
    client, scores = many
    for key, ascending in (("epistemic", False), ("pairwise_dice", True)):
        pages = [names(client, sort=key, offset=start) for start in range(0, IMAGES, 200)]
        found = [name for page in pages for name in page]
        assert sorted(found) == sorted(scores["name"])
        values = scores.set_index("name").loc[found, key]
        known = values.dropna()
        assert values.iloc[: len(known)].notna().all()  # those without a score stand last
        assert (known.is_monotonic_increasing if ascending else known.is_monotonic_decreasing) is True
        best = names(client, sort=key, order="best", limit=3)
        assert best == list(scores.sort_values(key, ascending=not ascending)["name"][:3])


def test_filters_are_those_of_pandas_on_the_same_table(many: tuple[TestClient, pd.DataFrame]) -> None:
    client, scores = many

    def total(**query: Any) -> int:
        return int(client.get("/api/images", params={"limit": 0, **query}).json()["total"])

    assert total(status="failed") == (scores["status"] == "failed").sum()
    assert total(search="P001.OME") == scores["name"].str.contains("p001.ome").sum()
    assert total(plate="p003", well="C/07") == scores["name"].str.startswith("p003.ome.zarr/C/07/").sum()
    assert total(**{"class": "nucleus"}) == (scores["area_fraction:nucleus"] > 0).sum()
    limit = float(scores["uncertainty"].quantile(0.9))
    both = {"beyond": [f"uncertainty:{limit!r}", "pairwise_dice:0.9"]}
    assert total(**both) == ((scores["uncertainty"] >= limit) & (scores["pairwise_dice"] <= 0.9)).sum()


def test_a_distribution_counts_every_image_once(many: tuple[TestClient, pd.DataFrame]) -> None:
    client, scores = many
    found = client.get("/api/distribution", params={"score": "uncertainty"}).json()
    own = scores["uncertainty"].dropna()
    expected = pd.cut(own, found["edges"], right=False).value_counts(sort=False).tolist()
    expected[-1] += int((own == found["edges"][-1]).sum())
    assert found["counts"] == expected
    assert found["missing"] == scores["uncertainty"].isna().sum()
    assert found["median"] == pytest.approx(own.median())


def test_a_plate_shows_the_median_of_each_well(many: tuple[TestClient, pd.DataFrame]) -> None:
    client, scores = many
    found = client.get("/api/plate", params={"plate": "p002", "score": "pairwise_dice"}).json()
    rows = scores[scores["name"].str.startswith("p002")]
    medians = rows.groupby(rows["name"].str.rpartition("/")[0])["pairwise_dice"].median()
    assert len(found["wells"]) == len(medians) == 384
    for well in found["wells"][::17]:
        name = f"p002.ome.zarr/{found['rows'][well['row']]}/{found['columns'][well['column']]}"
        assert well["value"] == pytest.approx(medians[name], abs=6e-4)


def test_an_image_is_found_where_the_list_has_it(many: tuple[TestClient, pd.DataFrame]) -> None:
    client, _ = many
    wanted = names(client, sort="uncertainty", offset=1234, limit=1)[0]
    answer = client.get("/api/images", params={"sort": "uncertainty", "at": wanted, "limit": 0}).json()
    assert answer["position"] == 1234
    elsewhere = "p001" if wanted.startswith("p000") else "p000"
    assert client.get("/api/images", params={"search": elsewhere, "at": wanted, "limit": 0}).json()["position"] is None


def test_flags_and_reasons_narrow_and_reasons_are_told_apart_without_their_numbers(small: Path) -> None:
    uncertainty = [f"uncertainty 0.{n}, not below U_min 0.04" for n in (12, 15)]
    flagged = {SLIDE: (["poor", "uncertain"], [uncertainty[0]]), FIELDS[3]: (["uncertain"], [uncertainty[1]])}
    write_flags(small, [SLIDE, *FIELDS, EVIL], flagged)
    client = TestClient(review_app(str(small)))
    about = client.get("/api/run").json()
    assert about["judged"] is True
    assert about["flags"] == {"poor": 1, "uncertain": 2, "review": 2}
    assert about["reasons"] == {"uncertainty …, not below U_min …": 2}
    assert names(client) == [SLIDE, *FIELDS, EVIL]
    assert names(client, flag="uncertain") == [SLIDE, FIELDS[3]]
    assert names(client, flag=["uncertain", "poor"]) == [SLIDE]
    assert names(client, reason="uncertainty …, not below U_min …", order="best") == [FIELDS[3], SLIDE]


def test_a_run_that_nothing_judges_says_so_in_its_first_answer(small: Path) -> None:
    document = json.loads((small / "run.json").read_text())
    (small / "run.json").write_text(json.dumps(document | {"unjudged": NO_REFERENCE}))
    about = TestClient(review_app(str(small))).get("/api/run").json()
    assert about["judged"] is False
    assert about["notes"] == [NO_REFERENCE]
    write_flags(small, names(TestClient(review_app(str(small)))), {SLIDE: (["ood"], ["features 12 sigma away"])})
    about = TestClient(review_app(str(small))).get("/api/run").json()
    assert about["judged"] is True
    assert about["notes"] == []


def test_a_run_that_goes_on_is_read_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(review_app(str(small)))
    assert len(names(client)) == 10
    scores = pd.read_parquet(small / "scores.parquet")
    scores.head(4).to_parquet(small / "scores.parquet")
    assert len(names(client)) == 10  # files are not asked for their age at every request
    monkeypatch.setattr("chorus.serving.review.run._PAUSE", -_PAUSE)
    assert len(names(client)) == 4


def test_what_is_wrong_is_said_in_one_sentence(small: Path, tmp_path: Path) -> None:
    client = TestClient(review_app(str(small)))
    for query, status, words in (
        ("images?sort=beauty", 400, "no score 'beauty'; choose out of"),
        ("images?limit=5000", 422, "limit: Input should be less than or equal to 200"),
        ("images?beyond=uncertainty", 400, "give a score, a colon and a number"),
        ("images?class=cat", 400, "no class 'cat'; choose out of nucleus"),
        ("plate?plate=p9&score=uncertainty", 404, "no plate 'p9'; choose out of p1"),
        ("nothing", 404, "Not Found"),
    ):
        answer = client.get(f"/api/{query}")
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert words in answer.json()["detail"]
    with pytest.raises(RefusedError, match=r"not found.*a review needs the --out of a `chorus predict` run"):
        review_app(str(tmp_path / "nothing"))


def test_the_page_may_load_from_its_own_server_alone(small: Path) -> None:
    answer = TestClient(review_app(str(small))).get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in answer.text
    assert np.all([name in answer.headers for name in ("x-content-type-options", "referrer-policy")])
