"""A stranger's ensemble is refused in one sentence, calls no address of its choice and tells nothing of other files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.ensembles.plain_yaml import NotPlainError, plain_yaml
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.members.kinds import smp
from tests.support.making import write_light_ensemble

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 12))
HOSTILE = {
    "a number of 6,000 digits": "tile: " + 6000 * "9",
    "a number of 6,000 digits in base 8": "tile: 0" + 6000 * "7",
    "a day that does not exist": "about: {name: 2001-02-30}",
    "an hour that does not exist": "about: 2001-01-01 99:00:00",
    "no time at all": "about: !!timestamp noon",
    "20,000 brackets": "about: " + 20000 * "[",
    "20,000 braces": "about: " + 20000 * "{a: ",
    "a list within itself": "about: {training: {recipe: &a {a: *a}}}",
    "aliases that unfold": BOMB,
    "a number that is none": "tile: !!int many",
    "a truth that is none": "flows: !!bool perhaps",
    "an object": "about: !!python/object/apply:os.system ['true']",
    "a format of 6,000 digits": "format: chorus-ensemble/" + 6000 * "9",
    "a merge of nothing": "<<: 3",
    "NUL": "name: a\0b",
}


def refusal(make: Callable[[], Any]) -> str:
    with pytest.raises(RefusedError) as caught:
        make()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    url = write_light_ensemble(tmp_path / "e", members=1)
    key = text.partition(":")[0]
    lines = [line for line in url.read_text().splitlines() if not line.startswith(f"{key}:")]
    url.write_text("\n".join([*lines, text, ""]))
    assert str(url) in refusal(lambda: read_ensemble(str(url)))


@given(st.text(alphabet="[]{}:&*!-? \n\t,'\"|>%@`0123456789eE.~<=_xabT", max_size=40))
def test_any_text_is_plain_values_or_not_plain(text: str) -> None:
    try:
        plain_yaml(text.encode())
    except NotPlainError:
        return


@given(st.one_of(st.text(max_size=60).map(str.encode), st.binary(max_size=60)))
def test_any_bytes_are_no_weights(data: bytes) -> None:
    assert "not a plain state dict" in refusal(lambda: smp.state_dict("m.pth", data)) or b"}" in data


TEXTS = [
    b"hello\n",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"<!DOCTYPE html><html>",
    b"{}",
    b"c",
    b"(",
    b"I9" * 9,
]


@pytest.mark.parametrize("data", TEXTS)
def test_weights_that_are_text_are_refused(data: bytes) -> None:
    refusal(lambda: smp.state_dict("m.pth", data))


def with_weights(folder: Path, weights: str, sha256: str | None = None) -> Path:
    url = write_light_ensemble(folder, members=1)
    content = yaml.safe_load(url.read_text())
    content["members"][0] |= {"weights": weights, "sha256": sha256 or 64 * "0"}
    url.write_text(yaml.safe_dump(content))
    return url


@pytest.mark.parametrize(
    "weights", ["http://127.0.0.1:1/m.pt", "https://x.invalid/m", "s3://bucket/m.pt", "memory://m"]
)
def test_weights_of_another_scheme_are_not_fetched(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = with_weights(tmp_path / "e", weights)
    called: list[str] = []
    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: read(url) if "://" not in url else called.append(url))
    said = refusal(lambda: read_ensemble(str(url)).load_member(0, torch.device("cpu")))
    assert "lie elsewhere" in said
    assert called == []


def test_with_trust_they_are(tmp_path: Path) -> None:
    url = with_weights(tmp_path / "e", "memory://weights/m.pt")
    asked = read_ensemble(str(url), trust_code=True).asked(0)
    assert (asked.url, asked.beside) == ("memory://weights/m.pt", False)


def test_an_ensemble_in_a_bucket_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    url = with_weights(tmp_path / "e", "/etc/hostname")
    storage.write_bytes("memory://hostile/ensemble.yaml", url.read_bytes())
    assert "lie elsewhere" in refusal(lambda: read_ensemble("memory://hostile").load_member(0, torch.device("cpu")))


@pytest.mark.parametrize("relative", [False, True])
def test_nothing_is_told_of_another_file_of_the_user(tmp_path: Path, relative: bool) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a password")
    url = with_weights(tmp_path / "e", "../secret.txt" if relative else str(secret))
    said = refusal(lambda: read_ensemble(str(url)).load_member(0, torch.device("cpu")))
    assert hashlib.sha256(secret.read_bytes()).hexdigest() not in said
    assert "password" not in said


@pytest.mark.parametrize("weights", ["pipe", "/dev/zero"])
def test_weights_that_are_a_pipe_or_a_device_are_refused(tmp_path: Path, weights: str) -> None:
    url = with_weights(tmp_path / "e", weights)
    os.mkfifo(tmp_path / "e/pipe")
    assert "not a file" in refusal(lambda: read_ensemble(str(url)).load_member(0, torch.device("cpu")))
