"""Terraform, as far as it goes without Google: formatted, parsed, nothing misspelt, nothing unused, little allowed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest

from tests.support.manifests import INFRA, schema

FOLDER = INFRA / "gke"
FILES = sorted(FOLDER.glob("*.tf"))
TEXT = "\n".join(path.read_text() for path in FILES)
# Of every resource, whatever its kind.
META = {"for_each": {}, "depends_on": {}, "provider": {}, "count": {}, "lifecycle": {"ignore_changes": {}}}


def bare(text: str) -> str:
    return text.strip('"')


def blocks(kind: str) -> list[dict[str, Any]]:
    """All blocks of that kind, of all files."""
    found = []
    for path in FILES:
        with path.open() as file:
            found += hcl2.load(file).get(kind, [])
    return found


def resources() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Type, name and body of every resource."""
    for block in blocks("resource"):
        for kind, named in block.items():
            if kind.startswith('"'):
                for name, body in named.items():
                    if name.startswith('"'):
                        yield bare(kind), bare(name), body


def misspelt(body: dict[str, Any], known: dict[str, Any], path: str) -> Iterator[str]:
    """Arguments and blocks that the provider does not have; a dynamic block counts as what it makes."""
    for name, value in body.items():
        if name.startswith("__"):
            continue
        if name == "dynamic":
            for dynamic in value:
                for label, made in dynamic.items():
                    if label.startswith('"'):
                        yield from misspelt({bare(label): made["content"]}, known, path)
        elif name not in known:
            yield f"{path}.{name}"
        else:
            for inner in value if isinstance(value, list) else []:
                if isinstance(inner, dict) and inner.get("__is_block__"):
                    yield from misspelt(inner, known[name], f"{path}.{name}")


def terraform(*words: object) -> subprocess.CompletedProcess[str]:
    """Run Terraform, which must not read a person's settings."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(["terraform", *map(str, words)], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def variables_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the variables, which Terraform checks without any provider."""
    folder = tmp_path_factory.mktemp("variables")
    shutil.copy(FOLDER / "variables.tf", folder)
    shutil.copy(FOLDER / "terraform.tfvars.example", folder / "terraform.tfvars")
    done = terraform(f"-chdir={folder}", "init", "-input=false", "-no-color")
    assert done.returncode == 0, done.stderr
    return folder


def test_terraform_finds_it_well_formatted() -> None:
    done = terraform("fmt", "-check", "-diff", "-no-color", FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_variables_is_accepted(variables_alone: Path) -> None:
    done = terraform(f"-chdir={variables_alone}", "plan", "-input=false", "-no-color", "-state=none")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        "region=europe-west4-a",
        'zones=["us-central1-a"]',
        "bucket=gs://results",
        'operators={all="0.0.0.0/0"}',
        'gpu_pools={t={machine_type="n1-standard-8",accelerator="tesla",max_nodes=1}}',
    ],
)
def test_a_wrong_variable_is_refused_by_name(variables_alone: Path, wrong: str) -> None:
    done = terraform(f"-chdir={variables_alone}", "plan", "-input=false", "-no-color", "-state=none", f"-var={wrong}")
    assert done.returncode == 1
    assert f"{wrong.split('=')[0]}: " in done.stderr


@pytest.mark.parametrize("resource", list(resources()), ids=lambda resource: f"{resource[0]}.{resource[1]}")
def test_arguments_of_every_resource_are_those_of_its_provider(resource: tuple[str, str, dict[str, Any]]) -> None:
    kind, name, body = resource
    assert not list(misspelt(body, schema("terraform.json")[kind] | META, name))


def test_a_misspelt_argument_is_noticed_however_deep() -> None:
    known = schema("terraform.json")["google_container_node_pool"]
    wrong = {"node_config": [{"__is_block__": True, "guest_accelerator": [{"__is_block__": True, "kind": 1}]}]}
    assert list(misspelt(wrong, known, "pool")) == ["pool.node_config.guest_accelerator.kind"]


def test_every_reference_is_to_something_that_is_there() -> None:
    there = {f"{kind}.{name}" for kind, name, _ in resources()}
    there |= {f"var.{name}" for name in re.findall(r'^variable "(\w+)"', TEXT, re.MULTILINE)}
    there |= {f"data.{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', TEXT, re.MULTILINE)}
    there |= {f"local.{name}" for block in blocks("locals") for name in block if not name.startswith("__")}
    code = re.sub(r"#.*", "", re.sub(r'description\s*=\s*".*"', "", TEXT))
    named = set(re.findall(r"\b((?:var|local)\.\w+|data\.\w+\.\w+|(?<!data\.)(?:google|helm)_\w+\.\w+)", code))
    assert named - there == set()
    unused = {name for name in there if name.startswith(("var.", "local.", "data."))} - named
    assert unused == set()


def test_every_variable_says_what_it_is_and_has_a_type() -> None:
    variables = {bare(name): body for block in blocks("variable") for name, body in block.items()}
    for name, body in variables.items():
        assert body.get("description"), name
        assert body.get("type"), name
    checked = {name for name, body in variables.items() if body.get("validation")}
    assert {"project", "region", "zones", "bucket", "operators", "gpu_pools", "kuberay_version"} <= checked


def test_the_example_gives_every_variable_without_a_default_and_no_other() -> None:
    variables = {bare(name): body for block in blocks("variable") for name, body in block.items()}
    with (FOLDER / "terraform.tfvars.example").open() as file:
        given = {name for name in hcl2.load(file) if not name.startswith("__")}
    assert {name for name, body in variables.items() if "default" not in body} <= given
    assert given <= set(variables)


def test_versions_are_bounded() -> None:
    for version in re.findall(r'^\s+(?:required_)?version\s+= "([^"]+)"', TEXT, re.MULTILINE):
        assert re.match(r"~> \d+\.\d+$|>= 1\.\d+, < 2\.0$", version), version


def test_runs_and_nodes_may_do_little() -> None:
    given = {(body["member"], bare(body["role"])) for kind, _, body in resources() if "_iam_" in kind}
    assert given == {
        ("${google_service_account.nodes.member}", "roles/container.defaultNodeServiceAccount"),
        ("${google_service_account.nodes.member}", "roles/artifactregistry.reader"),
        ("${local.runs}", "roles/storage.objectUser"),
        ("${local.runs}", "roles/storage.objectViewer"),
    }
    assert not [kind for kind, _, _ in resources() if "service_account_key" in kind or kind.endswith("_iam_policy")]


def test_nodes_are_private_and_the_bucket_is_not_public() -> None:
    (cluster,) = [body for kind, _, body in resources() if kind == "google_container_cluster"]
    assert cluster["private_cluster_config"][0]["enable_private_nodes"] is True
    assert cluster["workload_identity_config"]
    assert cluster["master_authorized_networks_config"]
    assert bare(cluster["datapath_provider"]) == "ADVANCED_DATAPATH"
    (bucket,) = [body for kind, _, body in resources() if kind == "google_storage_bucket"]
    assert bucket["uniform_bucket_level_access"] is True
    assert bare(bucket["public_access_prevention"]) == "enforced"
    assert bucket["force_destroy"] is False
    for _, name, pool in (found for found in resources() if found[0] == "google_container_node_pool"):
        assert bare(pool["node_config"][0]["workload_metadata_config"][0]["mode"]) == "GKE_METADATA", name
