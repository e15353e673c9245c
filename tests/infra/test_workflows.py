"""Workflows of GitHub, hooks of pre-commit and the citation are valid, and agree with what is pinned here.

actionlint itself comes from no package index; the workflow CI runs it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.support.pins import USES, pins

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROGRAMS = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def workflow(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def program(name: str, *arguments: str, given: str = "") -> str:
    """What it prints where it finds something; "" where it is content."""
    command = [str(PROGRAMS / name), *arguments]
    done = subprocess.run(command, input=given, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", [str(path) for path in WORKFLOWS]),
        ("dependabot", [str(GITHUB / "dependabot.yml")]),
        ("citation-file-format", ["CITATION.cff"]),
    ],
)
def test_files_have_the_form_that_their_readers_expect(schema: str, files: list[str]) -> None:
    assert files
    assert program("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files) == ""


def test_the_audit_of_workflows_finds_nothing() -> None:
    assert program("zizmor", "--offline", "--no-progress", "--quiet", str(GITHUB)) == ""


def test_the_audit_notices_a_workflow_that_trusts_its_input(tmp_path: Path) -> None:
    steps = "steps:\n      - run: echo ${{ github.event.issue.title }}\n"
    (tmp_path / "bad.yml").write_text(f"on: issues\njobs:\n  one:\n    runs-on: ubuntu-latest\n    {steps}")
    assert "template-injection" in program("zizmor", "--offline", "--no-progress", str(tmp_path / "bad.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\S+ .*", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_job_asks_for_the_rights_that_it_needs(path: Path) -> None:
    read = workflow(path)
    assert read["permissions"] == {}
    for job in read["jobs"].values():
        assert job["permissions"]
        assert "timeout-minutes" in job or "uses" in job


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_scripts_of_steps_are_sound(path: Path) -> None:
    for job in workflow(path)["jobs"].values():
        for step in job.get("steps", ()):
            if "run" in step:
                assert "${{" not in step["run"]
                assert program("shellcheck", "--shell=bash", "-", given=f"set -e\n{step['run']}") == ""


def test_workflows_install_what_has_a_pinned_hash_and_nothing_else() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        assert "--require-hashes" in line or "--no-deps --no-index" in line, line
    for name in re.findall(r"--requirement (\S+)", text):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("use", USES)
def test_every_requirement_is_pinned_with_hashes_and_names_no_host(use: str) -> None:
    text = (ROOT / "requirements" / f"{use}.txt").read_text()
    entries = re.split(r"\n(?! )", text.partition("make requirements\n")[2].strip())
    assert len(entries) == len(pins(use)) > 0
    for entry in entries:
        first, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; .+)?", first), first
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes)


def test_what_is_shipped_is_what_is_tested() -> None:
    tested = pins("dev")
    for use in USES:
        assert {name: version for name, version in pins(use).items() if tested.get(name, version) != version} == {}
    assert pins("run").keys() <= tested.keys()


def test_the_pins_are_of_what_the_project_asks_for() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    extras = PROJECT["optional-dependencies"]
    run = [*PROJECT["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    for use, asked in {"run": run, "dev": [*run, *extras["dev"]], **groups}.items():
        pinned = pins(use)
        for requirement in map(Requirement, asked):
            if requirement.name != PROJECT["name"]:
                name = canonicalize_name(requirement.name)
                assert requirement.specifier.contains(pinned[name], prereleases=True), requirement


def test_ci_covers_the_oldest_and_the_newest_python() -> None:
    matrix = workflow(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert matrix["python"] == [f"3.{low}", f"3.{int(high) - 1}"]


def test_pre_commit_has_the_versions_that_are_pinned() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {repository["repo"].rpartition("/")[2]: repository["rev"] for repository in hooks}
    assert revisions["ruff-pre-commit"] == f"v{pins('dev')['ruff']}"
    assert revisions["zizmor-pre-commit"] == f"v{pins('dev')['zizmor']}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
