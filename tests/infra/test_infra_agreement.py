"""The files of `infra/` agree with each other and with the pins: versions, names, ports, places; and are safe."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from ray._private import ray_constants

from tests.support.manifests import (
    DOCS,
    INFRA,
    ROOT,
    PodTemplate,
    of_kind,
    pod_templates,
    run,
    text_files,
    yaml_documents,
)
from tests.support.pins import pins

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PINS = pins("run")
TERRAFORM = "\n".join(path.read_text() for path in sorted((INFRA / "gke").glob("*.tf")))
PODS = pod_templates()
NODES = [pod for pod in PODS if pod.ray_start]


def default_of(variable: str) -> str:
    """The default of a Terraform variable that is a string."""
    (block,) = re.findall(rf'variable "{variable}" {{(.*?)\n}}', TERRAFORM, re.DOTALL)
    (value,) = re.findall(r'default\s+= "([^"]*)"', block)
    return value


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def environment(pod: PodTemplate) -> dict[str, str]:
    """Of the Ray container."""
    return {variable["name"]: variable["value"] for variable in pod.containers[0]["env"]}


by_role = pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.role)


def test_the_version_of_ray_is_the_pinned_one() -> None:
    assert run()["rayClusterSpec"]["rayVersion"] == PINS["ray"]


def test_every_image_of_ours_has_the_version_of_the_package() -> None:
    tags = {(path.name, tag) for path, text in text_files() for tag in re.findall(r"/chorus:(\S+?)[`\"\s]", text)}
    assert {"rayjob.yaml", "gcp.yaml", "Dockerfile", "operators.md"} <= {name for name, _ in tags}
    assert {tag for _, tag in tags} == {VERSION}
    assert f"ARG VERSION={VERSION}\n" in (INFRA / "container" / "Dockerfile").read_text()


def test_the_base_of_the_image_has_the_pinned_cuda() -> None:
    (cuda,) = re.findall(r"nvidia/cuda:(\d+\.\d+)", (INFRA / "container" / "Dockerfile").read_text())
    assert PINS["cuda-toolkit"].startswith(cuda + ".")


def test_no_file_takes_the_latest_of_anything() -> None:
    for path, text in text_files():
        assert not re.search(r":latest\b|:nightly\b", text), path


def test_names_of_the_run_are_those_that_terraform_gives_rights_to() -> None:
    (namespace,) = of_kind("Namespace")
    (account,) = of_kind("ServiceAccount")
    assert namespace["metadata"]["name"] == default_of("namespace")
    assert account["metadata"]["name"] == default_of("service_account")
    assert {pod.spec["serviceAccountName"] for pod in NODES} == {account["metadata"]["name"]}
    assert f"?ref=v{default_of('kuberay_version')}" in (ROOT / "docs" / "operators.md").read_text()


def test_pods_go_to_pools_that_terraform_makes_and_bear_their_taints() -> None:
    pools = set(re.findall(r'"chorus/pool" = "(\w+)"', TERRAFORM))
    accelerators = set(re.findall(r'accelerator = "([\w-]+)"', TERRAFORM))
    (taint,) = re.findall(r'spot_taint = {{ key = "([^"]+)", value = "([^"]+)"'.replace("{{", "{"), TERRAFORM)
    for pod in PODS:
        selector = pod.spec["nodeSelector"]
        gpu = selector.get("cloud.google.com/gke-accelerator")
        assert selector.get("chorus/pool") in pools or gpu in accelerators
        borne = {(t["key"], t.get("value")) for t in pod.spec.get("tolerations", [])}
        on_demand = selector.get("chorus/pool") == "heads"
        assert (taint in borne) != on_demand
        assert gpu is None or ("nvidia.com/gpu", None) in borne


@by_role
def test_gpus_and_memory_are_asked_for_as_they_are_limited(pod: PodTemplate) -> None:
    for container in pod.containers:
        asked, limited = container["resources"]["requests"], container["resources"]["limits"]
        assert asked["memory"] == limited["memory"]
        assert asked.get("nvidia.com/gpu") == limited.get("nvidia.com/gpu")
        assert ("nvidia.com/gpu" in limited) == pod.role.startswith("gpu")


@by_role
def test_pods_fit_the_restricted_standard_which_the_namespace_enforces(pod: PodTemplate) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, Restricted."""
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    context = pod.spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] >= 1000
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
    assert all("emptyDir" in volume for volume in pod.spec.get("volumes", []))
    contexts = [container["securityContext"] for container in pod.containers]
    for inner in [*contexts, run()["rayClusterSpec"]["autoscalerOptions"]["securityContext"]]:
        assert inner == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_ports_are_the_same_wherever_they_are_named() -> None:
    (head,) = [pod for pod in PODS if pod.role == "head"]
    open_on_head = ports(head.containers[0])
    for pod in NODES:
        assert int(pod.ray_start["metrics-export-port"]) == ports(pod.containers[0])["metrics"] == 8080
    assert f"--metrics-port {open_on_head['run-metrics']}" in run()["entrypoint"]
    allowed = {policy["metadata"]["name"]: policy["spec"]["ingress"] for policy in of_kind("NetworkPolicy")[1:4]}
    assert [port["port"] for port in allowed["operator"][0]["ports"]] == [open_on_head["dashboard"]]
    scraped = [port["port"] for port in allowed["metrics"][0]["ports"]]
    assert scraped == [open_on_head["metrics"], open_on_head["run-metrics"]]
    for monitor in of_kind("PodMonitor") + of_kind("PodMonitoring"):
        points = monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]
        assert {point["port"] for point in points} <= set(open_on_head)
    told = (INFRA / "ray" / "gcp.yaml").read_text() + (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"--metrics-export-port=(\d+)", told)) == {str(open_on_head["metrics"])}
    assert set(re.findall(r"--metrics-port (\d+)", told)) == {str(open_on_head["run-metrics"])}
    assert f"on port {open_on_head['metrics']}; the run itself, on the head, on {open_on_head['run-metrics']}" in (
        ROOT / "docs" / "operators.md"
    ).read_text().replace("\n", " ")


def test_every_policy_budget_and_monitor_selects_pods_that_the_run_makes() -> None:
    labels = {pod.role: dict(pod.template["metadata"]["labels"]) for pod in PODS}
    for role in labels:  # KubeRay adds these
        labels[role] |= {} if role == "submitter" else {"ray.io/node-type": "head" if role == "head" else "worker"}
    selecting = [*of_kind("PodDisruptionBudget"), *of_kind("PodMonitor"), *of_kind("PodMonitoring")]
    selectors = [item["spec"]["selector"]["matchLabels"] for item in selecting]
    selectors += [p["spec"]["podSelector"].get("matchLabels", {}) for p in of_kind("NetworkPolicy")]
    for selector in selectors:
        assert any(selector.items() <= of_pod.items() for of_pod in labels.values()), selector


def test_nothing_is_allowed_but_what_a_policy_names() -> None:
    deny, *allow = of_kind("NetworkPolicy")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    rules = [rule for policy in allow for rule in policy["spec"].get("ingress", [])]
    assert rules
    assert all(rule.get("from") for rule in rules), "a rule without `from` lets everyone in"


def test_the_head_computes_nothing_and_stays_and_workers_come_and_go() -> None:
    cluster = run()["rayClusterSpec"]
    (head,) = [pod for pod in PODS if pod.role == "head"]
    assert head.ray_start["num-cpus"] == "0"
    assert head.template["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0
        assert 0 < group["replicas"] <= group["maxReplicas"]
    most = sum(g["maxReplicas"] for g in cluster["workerGroupSpecs"] if g["groupName"].startswith("gpu"))
    (quota,) = of_kind("ResourceQuota")
    assert most <= int(quota["spec"]["hard"]["requests.nvidia.com/gpu"])


def test_a_stopped_job_and_a_preempted_node_have_time_to_stop_in_order() -> None:
    """The variable is Ray's, read when it starts; Kubernetes kills after the pod's own period."""
    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S > 0
    for pod in NODES:
        drain = float(environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert 0 < drain < pod.spec["terminationGracePeriodSeconds"]
        if pod.role == "head":
            assert 60 <= float(environment(pod)["RAY_JOB_STOP_WAIT_TIME_S"]) < drain
        else:  # what GKE leaves of a spot machine's last 30 seconds
            assert pod.spec["terminationGracePeriodSeconds"] == 15


def test_ray_asks_for_a_token_everywhere_and_lowers_no_priority() -> None:
    assert run()["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for pod in NODES:
        assert environment(pod)["RAY_worker_niceness"] == "0"
    launcher = yaml_documents(INFRA / "ray" / "gcp.yaml")[0]
    assert {"--env RAY_AUTH_MODE=token", "--env RAY_worker_niceness=0"} <= set(launcher["docker"]["run_options"])
    script = (INFRA / "slurm" / "chorus.sbatch").read_text()
    assert "RAY_AUTH_MODE=token" in script
    assert "RAY_worker_niceness=0" in script


def test_a_run_leaves_no_cluster_behind() -> None:
    assert run()["shutdownAfterJobFinishes"] is True
    assert run()["activeDeadlineSeconds"] > 0
    assert run()["preRunningDeadlineSeconds"] > 0


def test_no_file_holds_a_secret() -> None:
    assert not of_kind("Secret")
    marks = re.compile(
        r"-----BEGIN|AIza[\w-]{20}|AKIA[A-Z0-9]{12}|ya29\.|ghp_\w{20}|\"?private_key\"?\s*[:=]|password\s*[:=]|"
        r"(?i:secret|token)\s*[:=]\s*[\"'][^\"'$]{8,}"
    )
    for path, text in text_files():
        assert not marks.search(text), path
    for pod in PODS:
        for container in pod.containers:
            assert not container.get("envFrom")


def test_pages_and_files_say_nothing_of_serving_that_does_not_exist() -> None:
    served = [path for path in (ROOT / "serving").glob("*.py") if path.name != "__init__.py"]
    services = [path for path, text in text_files() if path not in DOCS and "RayService" in text]
    assert served or not services
