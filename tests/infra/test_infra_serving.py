"""The server of `infra/kuberay/rayservice.yaml`: known fields, settings that the server takes, pods that are safe."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from chorus.serving.contract.settings import ServeSettings, parse_settings
from tests.support.manifests import KUBERNETES, of_kind, run, schema, strict

(SERVICE,) = of_kind("RayService")
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
CONFIG = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
TEMPLATES = [group["template"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]


def settings() -> ServeSettings:
    (application,) = CONFIG["applications"]
    return parse_settings(application["args"])


def test_the_service_fits_the_definition_of_rayservice() -> None:
    jsonschema.validate(SERVICE, strict(schema("rayservice.json")))
    wrong = SERVICE | {"spec": SERVICE["spec"] | {"serveConfig": ""}}
    with pytest.raises(jsonschema.ValidationError, match="serveConfig"):
        jsonschema.validate(wrong, strict(schema("rayservice.json")))


def test_its_config_is_one_that_serve_and_the_server_take() -> None:
    deployed = ServeDeploySchema.model_validate(CONFIG)
    assert deployed.applications[0].import_path == "chorus.serving.app:build"
    assert settings().token_file == "/etc/chorus/tokens.json"
    assert settings().jobs_url.startswith("gs://")


def test_it_runs_what_runs_have_and_listens_where_the_network_lets_the_ingress_in() -> None:
    assert CLUSTER["rayVersion"] == run()["rayClusterSpec"]["rayVersion"]
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("NetworkPolicy")}
    (allowed,) = policies["serve"]["ingress"]
    assert [port["port"] for port in allowed["ports"]] == [CONFIG["http_options"]["port"]]


@pytest.mark.parametrize("template", TEMPLATES, ids=["head", "gpu"])
def test_its_pods_are_valid_and_restricted_and_have_the_tokens(template: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
    kubernetes_validate.validate(whole | {"spec": template["spec"]}, KUBERNETES, strict=True)
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/etc/chorus"}
        assert {port["containerPort"] for port in container["ports"]} >= {8000, 8080}
