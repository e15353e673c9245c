"""`infra/ray/gcp.yaml` is what the pinned Ray's cluster launcher takes."""

from __future__ import annotations

import re

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.manifests import INFRA, yaml_documents

(CLUSTER,) = yaml_documents(INFRA / "ray" / "gcp.yaml")
TYPES = CLUSTER["available_node_types"]


def test_ray_accepts_the_file_with_its_defaults_filled_in() -> None:
    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    assert prepared["docker"]["image"].startswith("REGISTRY/chorus:")


def test_ray_notices_a_field_that_it_does_not_know() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config(CLUSTER | {"idle_minutes": 5}))


def test_workers_are_spot_and_the_head_is_not() -> None:
    head = TYPES[CLUSTER["head_node_type"]]
    assert "scheduling" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    for name, worker in TYPES.items():
        if name != CLUSTER["head_node_type"]:
            assert worker["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
            assert worker["resources"]["GPU"] == 1
            assert 0 < worker["min_workers"] <= worker["max_workers"] <= CLUSTER["max_workers"]


def test_the_zone_is_in_the_region_and_nothing_listens_to_the_world() -> None:
    assert CLUSTER["provider"]["availability_zone"].startswith(CLUSTER["provider"]["region"] + "-")
    (start,) = [line for line in CLUSTER["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    (port,) = re.findall(r"--port=(\d+)", start)
    (join,) = [line for line in CLUSTER["worker_start_ray_commands"] if "--address" in line]
    assert f"--address=$RAY_HEAD_IP:{port} " in join
