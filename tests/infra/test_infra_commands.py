"""Every command that `infra/` and the operators' pages name exists, with the options that they give it."""

from __future__ import annotations

import re

import click
import pytest
import ray.scripts.scripts

from chorus.pipeline.ensembles.builtin import builtin_ensembles
from tests.support.commands import CHORUS, parse
from tests.support.manifests import DOCS, INFRA, ROOT, code_blocks, command_lines, run

RAY: click.Group = ray.scripts.scripts.cli


def label(call: tuple[str, list[str]]) -> str:
    return f"{call[0]}: {' '.join(call[1])}"


@pytest.mark.parametrize("call", command_lines("chorus"), ids=label)
def test_every_call_of_chorus_parses(call: tuple[str, list[str]]) -> None:
    parsed = parse(CHORUS, call[1])
    if parsed.info_name == "submit":
        parse(CHORUS, parsed.params["words"])


@pytest.mark.parametrize("call", [c for c in command_lines("ray") if c[1][0] != "submit"], ids=label)
def test_every_call_of_ray_parses(call: tuple[str, list[str]]) -> None:
    parse(RAY, call[1])


def test_calls_are_found_where_they_are() -> None:
    found = {(name, words[0]) for program in ("chorus", "ray") for name, words in command_lines(program)}
    assert {(page, "predict") for page in ("slurm.md", "rayjob.yaml", "chorus.sbatch")} <= found
    assert {
        ("operators.md", "submit"),
        ("jobs.md", "submit"),
        ("operators.md", "plan"),
        ("operators.md", "up"),
        ("gcp.yaml", "start"),
        ("slurm.md", "start"),
    } <= found


def test_an_option_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option: --adress"):
        parse(CHORUS, ["predict", "a", "-e", "b", "-o", "c", "--adress", "auto"])


def test_every_run_joins_the_cluster_and_says_which_ensemble() -> None:
    in_cluster = [words for name, words in command_lines("chorus") if name != "slurm.md" and words[0] == "predict"]
    for words in in_cluster:
        assert parse(CHORUS, words).params["address"]
    assert parse(CHORUS, run()["entrypoint"].split()[1:]).params["ensemble"] in builtin_ensembles()


def test_ray_start_parameters_of_the_run_are_options_of_ray_start() -> None:
    known = {option for parameter in RAY.commands["start"].params for option in parameter.opts}
    cluster = run()["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {f"--{name}" for group in groups for name in group["rayStartParams"]} <= known


def test_files_that_the_pages_name_exist() -> None:
    for page in DOCS:
        linked = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
        named = re.findall(r"\binfra/[\w./-]+\w", "\n".join(code_blocks(page)))
        assert linked
        for target in linked:
            assert (page.parent / target).exists(), target
        for target in named:
            if target != "infra/gke/terraform.tfvars":  # the reader makes it
                assert (ROOT / target).exists(), target


def test_outputs_that_the_pages_read_are_outputs_of_terraform() -> None:
    made = set(re.findall(r'^output "(\w+)"', (INFRA / "gke" / "outputs.tf").read_text(), re.MULTILINE))
    read = {name for page in DOCS for name in re.findall(r"infra/gke output (?:-raw )?(\w+)", page.read_text())}
    assert read == made
