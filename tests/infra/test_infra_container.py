"""The image: linted, pinned, not root, and made of what it needs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import ray.scripts.scripts
from ray.dashboard.modules.reporter import healthz_agent

from tests.support.manifests import INFRA, ROOT

DOCKERFILE = INFRA / "container" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LET_IN = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_base_is_pinned_and_the_last_stage_is_not_root() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", base)
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", TEXT, re.MULTILINE)
    names = {name for _, name in stages if name}
    assert all(source == "${BASE}" or source in names for source, _ in stages)
    last = TEXT[TEXT.rindex("\nFROM ") :]
    assert re.search(r"^USER (\d+)$", last, re.MULTILINE).group(1) == "1000"  # type: ignore[union-attr]
    assert "HEALTHCHECK" in last
    assert "ENTRYPOINT" in last


def test_installs_use_the_pins_and_leave_no_cache() -> None:
    installs = re.findall(r"pip (?:install|wheel) ([^&\n]*)", TEXT)
    assert len(installs) == 5
    for words in installs:
        assert "--no-cache-dir" in words
        assert "--require-hashes" in words or "--no-deps" in words
        assert "wheel" not in words or "--no-build-isolation" in words or "--no-index" in words
    assert TEXT.count("apt-get update") == TEXT.count("rm -rf /var/lib/apt/lists/*")


def test_nothing_enters_the_build_but_what_the_wheel_is_made_of() -> None:
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {"pyproject.toml", "requirements", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    linked = {link.readlink().name for name in packages for link in (ROOT / name).iterdir() if link.is_symlink()}
    assert set(LET_IN) == packages | linked | files
    assert all((ROOT / name).exists() for name in LET_IN)


def test_the_image_has_what_the_project_asks_for_and_rays_dashboard() -> None:
    assert "--requirement run.txt" in TEXT
    assert any(line.startswith("ray[") and "default" in line for line in PROJECT["project"]["dependencies"])
    assert "/opt/chorus/pins.txt" in TEXT
    assert "/opt/chorus/pins.txt" in (ROOT / "infra/ray/gcp.yaml").read_text()


def test_the_health_check_asks_rays_agent_where_it_listens() -> None:
    (port, path) = re.findall(r"http://localhost:(\d+)(/\S+?)\"", TEXT)[0]
    start = ray.scripts.scripts.cli.commands["start"]
    (listen,) = [parameter.default for parameter in start.params if parameter.name == "dashboard_agent_listen_port"]
    assert int(port) == listen
    assert f'"{path}"' in inspect.getsource(healthz_agent)
