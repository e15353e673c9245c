"""What `infra/` says to Kubernetes, KubeRay and Prometheus has the fields that they know, and none that they do not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.manifests import (
    INFRA,
    KUBERNETES,
    kubernetes_objects,
    of_kind,
    pod_templates,
    schema,
    strict,
    yaml_documents,
)

CORE = {"Namespace", "NetworkPolicy", "PodDisruptionBudget", "ResourceQuota", "ServiceAccount"}
YAML_FILES = sorted(path for path in INFRA.rglob("*") if path.suffix in {".yaml", ".yml"})


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_yaml_file_parses_and_names_no_key_twice(path: Path) -> None:
    assert all(document is not None for document in yaml_documents(path))


def test_a_key_that_is_there_twice_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(yaml.YAMLError):
        yaml_documents(tmp_path / "x.yaml")


@pytest.mark.parametrize("item", kubernetes_objects(), ids=lambda item: f"{item['kind']}-{item['metadata']}")
def test_every_object_is_of_a_kind_that_is_validated_here(item: dict[str, Any]) -> None:
    assert item["kind"] in CORE | {"RayJob", "RayService", "PodMonitor", "PodMonitoring"}
    if item["kind"] != "Namespace":
        assert item["metadata"]["namespace"] == "chorus"


@pytest.mark.parametrize("kind", sorted(CORE))
def test_objects_of_kubernetes_itself_fit_its_schema(kind: str) -> None:
    assert of_kind(kind)
    for item in of_kind(kind):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", pod_templates(), ids=lambda pod: pod.role)
def test_pods_of_the_run_fit_the_schema_of_pods(pod: Any) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.role, **pod.template["metadata"]}}
    kubernetes_validate.validate(whole | {"spec": pod.spec}, KUBERNETES, strict=True)


def test_the_run_fits_the_definition_of_rayjob() -> None:
    (job,) = of_kind("RayJob")
    jsonschema.validate(job, strict(schema("rayjob.json")))


def test_a_field_that_kuberay_does_not_know_is_noticed() -> None:
    (job,) = of_kind("RayJob")
    wrong = job | {"spec": job["spec"] | {"shutdownAfterJobFinish": True}}
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.validate(wrong, strict(schema("rayjob.json")))


@pytest.mark.parametrize("kind", ["PodMonitor", "PodMonitoring"])
def test_monitors_have_only_fields_that_are_known(kind: str) -> None:
    assert of_kind(kind)
    for item in of_kind(kind):
        jsonschema.validate(item, strict(schema("monitors.json")[kind]))


def test_kustomize_builds_what_runs_live_in_and_no_run() -> None:
    (listed,) = yaml_documents(INFRA / "kuberay" / "kustomization.yaml")
    kinds = {document["kind"] for name in listed["resources"] for document in yaml_documents(INFRA / "kuberay" / name)}
    assert kinds == CORE | {"PodMonitoring"}
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here to build it")
    done = subprocess.run(["kubectl", "kustomize", INFRA / "kuberay"], capture_output=True, text=True, check=True)
    assert {document["kind"] for document in yaml.safe_load_all(done.stdout)} == kinds
