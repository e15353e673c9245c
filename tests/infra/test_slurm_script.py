"""The Slurm script: clean, and with programs of Slurm that only say what they were asked, in order to the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.manifests import INFRA

SCRIPT = INFRA / "slurm" / "chorus.sbatch"
# Each program writes its words down. `srun` runs what follows its own options; Ray's nodes live until they are told.
PROGRAMS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "ray": 'if [[ $1 == start ]]; then\n  trap "exit 0" TERM\n  while :; do sleep 0.05; done\nfi',
    # Waits for all nodes, as the real one does.
    "python": "if [[ $1 == -c ]]; then\n  echo token\nelse\n  cat > /dev/null\n"
    '  until [[ $(grep -c "^ray start" "$CALLS") == 2 ]]; do sleep 0.05; done\n  exit "${JOINING:-0}"\nfi',
    "hostname": "if [[ $1 == --ip-address ]]; then\n  echo 10.0.0.1 fe80::1\nelse\n  echo node-1\nfi",
    "scontrol": "",
    "chorus": 'trap "exit 3" TERM\nif [[ -n $ENDS ]]; then exit "$ENDS"; fi\nwhile :; do sleep 0.05; done',
}


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of programs that write into ``calls``."""
    for name, body in PROGRAMS.items():
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{body}\n')
        program.chmod(0o755)
    return tmp_path


def start(slurm: Path, ends: str, **more: str) -> subprocess.Popen[bytes]:
    job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_PER_TASK": "8"}
    environment = os.environ | job | {"PATH": f"{slurm}:/usr/bin:/bin", "ENDS": ends, "CALLS": f"{slurm}/calls"} | more
    return subprocess.Popen(["bash", SCRIPT, "a b.zarr", "--out", "o"], env=environment, start_new_session=True)


def calls(slurm: Path, program: str) -> list[str]:
    lines = (slurm / "calls").read_text().splitlines()
    return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]


def test_bash_and_shellcheck_have_nothing_to_say() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_python_in_it_compiles() -> None:
    (inside,) = re.findall(r"<< 'PYTHON'.*?\n(.*?)^PYTHON$", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    compile(inside, "chorus.sbatch", "exec")


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_job_ends_as_the_run_does_and_takes_its_cluster_along(slurm: Path, code: int) -> None:
    assert start(slurm, str(code)).wait(30) == code
    started = [line for line in calls(slurm, "ray") if line.startswith("start")]
    head, workers = sorted(started, key=lambda line: "--head" not in line)
    (address,) = re.findall(r"--address (\S+)", workers)
    assert f"--head --port {address.split(':')[1]} " in head
    assert calls(slurm, "chorus") == [f"predict a b.zarr --out o --address {address}"]
    on_workers = next(line for line in calls(slurm, "srun") if "--head" not in line)
    assert on_workers.startswith("--overlap --nodes=2 --ntasks=2 --exclude=node-1 ray start")
    assert not calls(slurm, "scontrol")


def test_a_job_that_is_told_stops_the_run_in_order_and_queues_itself_again(slurm: Path) -> None:
    job = start(slurm, "")
    while not (slurm / "calls").exists() or not calls(slurm, "chorus"):
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(30) == 3
    assert calls(slurm, "scontrol") == ["requeue 1234567"]


def test_a_job_whose_nodes_do_not_join_is_cut_short_before_the_run(slurm: Path) -> None:
    assert start(slurm, "0", JOINING="1").wait(30) == 3
    assert not calls(slurm, "chorus")
