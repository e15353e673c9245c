"""Reading what `infra/` holds: YAML without doubles, Kubernetes objects, their pods, and code blocks of the docs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

INFRA = ROOT / "infra"
SCHEMAS = ROOT / "tests" / "infra" / "schemas"
DOCS = [ROOT / "docs" / name for name in ("operators.md", "slurm.md", "jobs.md")]


class _OnceLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, as Kubernetes does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        doubles = {key for key in keys if keys.count(key) > 1}
        if doubles:
            raise yaml.YAMLError(f"{node.start_mark}: {doubles} twice")
        return super().construct_mapping(node, deep)


def yaml_documents(path: Path) -> list[Any]:
    """Every document of a YAML file."""
    with path.open() as file:
        return list(yaml.load_all(file, _OnceLoader))


@cache
def kubernetes_objects() -> list[dict[str, Any]]:
    """All of `infra/kuberay` but the list of its files."""
    files = [path for path in sorted((INFRA / "kuberay").glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml_documents(path)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    """The objects of that kind."""
    return [item for item in kubernetes_objects() if item["kind"] == kind]


def run() -> dict[str, Any]:
    """`spec` of the RayJob."""
    (job,) = of_kind("RayJob")
    return job["spec"]


@dataclass(frozen=True)
class PodTemplate:
    """A pod that the run makes: what it is, its template, and the ``ray start`` options of its node."""

    role: str
    template: dict[str, Any]
    ray_start: dict[str, str]

    @property
    def spec(self) -> dict[str, Any]:
        return self.template["spec"]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return self.spec["containers"]


def pod_templates() -> list[PodTemplate]:
    """The pods of the RayJob: head, workers by group, submitter."""
    cluster = run()["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    groups = cluster["workerGroupSpecs"]
    return [
        PodTemplate("head", head["template"], head["rayStartParams"]),
        *(PodTemplate(group["groupName"], group["template"], group["rayStartParams"]) for group in groups),
        PodTemplate("submitter", run()["submitterPodTemplate"], {}),
    ]


def schema(name: str) -> dict[str, Any]:
    """A file of `tests/infra/schemas`."""
    return json.loads((SCHEMAS / name).read_text())


def text_files() -> Iterator[tuple[Path, str]]:
    """Every file of `infra/` and the operators' pages."""
    for path in [*sorted(INFRA.rglob("*")), *DOCS]:
        if path.is_file() and ".terraform" not in path.parts:
            yield path, path.read_text()


def code_blocks(page: Path) -> list[str]:
    """The lines of a page's code blocks, continued lines joined."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def calls_in(pages: Iterable[Path], program: str) -> list[tuple[str, str]]:
    """Every line of the pages' code blocks that calls `program`, also in quotes: the page's name, and the line."""
    lines = [(path.name, line.split(" #")[0]) for path in pages for line in code_blocks(path)]
    calls = [(name, line) for name, line in lines if line.startswith(f"{program} ")]
    return calls + [(name, text) for name, line in lines for text in re.findall(rf"'({program} [^']*)'", line)]


def command_lines(program: str) -> list[tuple[str, list[str]]]:
    """Every call of `program` in `infra/` and the docs: the file's name, and the words after the program's own."""
    calls = calls_in(DOCS, program)
    if program == "chorus":
        calls.append(("rayjob.yaml", run()["entrypoint"]))
    launcher = yaml_documents(INFRA / "ray" / "gcp.yaml")[0]
    started = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    calls += [("gcp.yaml", text) for line in started for text in re.findall(rf"\b{program} \S.*", line)]
    script = (INFRA / "slurm" / "chorus.sbatch").read_text()
    calls += [("chorus.sbatch", text.rstrip(" &")) for text in re.findall(rf"^{program} .*", script, re.MULTILINE)]
    return [(name, shlex.split(text)[1:]) for name, text in calls]


KUBERNETES = "1.34"


def strict(part: Any) -> Any:
    """An OpenAPI schema under which a field that it does not name is an error."""
    if isinstance(part, list):
        return [strict(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    inner = {name: strict(value) for name, value in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
