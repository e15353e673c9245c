"""Driver, cluster and submitter must run the same software; who does not is named in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info
from ray.cluster_utils import Cluster

from chorus.cluster.runtime import session
from chorus.cluster.runtime.versions import SUBMITTED_WITH, installed, mismatch, require_same, require_submitter
from chorus.pipeline.errors import RefusedError


def test_what_is_installed_is_what_packages_say_of_themselves() -> None:
    import numpy
    import torch
    import zarr

    found = installed()
    assert found["numpy"] == numpy.__version__
    assert found["zarr"] == zarr.__version__
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["ray"] == ray.__version__
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_nodes_with_the_same_versions_are_taken() -> None:
    require_same("auto", installed(), [("10.0.0.1", installed()), ("10.0.0.2", installed())])


@pytest.mark.parametrize("package", ["chorus-bioimage", "torch", "numpy", "zarr", "python", "ray"])
def test_a_node_of_another_version_is_refused_by_package_versions_and_node(package: str) -> None:
    nodes = [("10.0.0.1", installed()), ("10.0.0.2", installed() | {package: "0.0.1"})]
    with pytest.raises(RefusedError) as refused:
        require_same("head:6379", installed(), nodes)
    said = str(refused.value)
    assert f"--address head:6379: {package} is 0.0.1 on node 10.0.0.2 and {installed()[package]} here" in said
    assert "use the same image" in said
    assert "\n" not in said


def test_many_nodes_of_another_version_are_counted_and_a_missing_package_is_called_so() -> None:
    other = {name: found for name, found in installed().items() if name != "torch"}
    with pytest.raises(RefusedError, match=r"torch is missing on node 10\.0\.0\.0 and on 2 more"):
        require_same("auto", installed(), [(f"10.0.0.{index}", other) for index in range(3)])


@pytest.mark.parametrize("changed", [{"ray_version": "2.59.0"}, {"python_version": "3.10.2"}])
def test_what_ray_says_of_another_ray_or_python_becomes_a_sentence(changed: dict[str, str]) -> None:
    """Ray's own check makes the text."""
    own = {"ray_version": ray.__version__, "python_version": sys.version.split()[0]}
    with pytest.raises(RuntimeError) as told:
        check_version_info(own | changed, "here", python_version_match_level="patch")
    ((field, there),) = changed.items()
    package = field.removesuffix("_version")
    said = mismatch("head:6379", str(told.value))
    assert said is not None
    assert said.startswith(f"--address head:6379: {package} is {there} on the cluster and {own[field]} here")
    assert mismatch("head:6379", "connection refused") is None


def test_a_job_that_another_chorus_submitted_is_refused_before_its_arguments_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SUBMITTED_WITH, version("chorus-bioimage"))
    require_submitter()
    monkeypatch.setenv(SUBMITTED_WITH, "9.9.9")
    ended = subprocess.run(
        [sys.executable, "-m", "chorus.cli", "predict", "--not-yet-known"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "chorus-bioimage is 9.9.9 where this job was submitted" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def mixed_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes of which the second finds another numpy, as of another image."""
    other = tmp_path / "image" / "numpy-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    arguments = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 96 << 20}
    made = Cluster(initialize_head=True, head_node_args=arguments)
    made.add_node(num_cpus=1, object_store_memory=96 << 20, env_vars={"PYTHONPATH": str(other.parent)})
    yield made
    made.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_a_node_of_another_image_is_found_on_a_real_cluster(mixed_cluster: Cluster) -> None:
    with pytest.raises(RefusedError, match=r"numpy is 0\.0\.1 on node [\d.]+ and "):
        session.start(mixed_cluster.address, staged=False)
    assert not ray.is_initialized()
