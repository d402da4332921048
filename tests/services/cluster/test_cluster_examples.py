"""The examples of the guides have the published fields, run what there is, and give no secret to who needs none."""

import copy
import json
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from services.settings import PREFIX, variables
from services.study_config.yaml_reader import bundled

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "guides" / "examples"
MOST_UPLOADED = 4 << 20


def rayjob() -> Any:
    return yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())


def ray_up() -> Any:
    return yaml.safe_load((EXAMPLES / "ray-up.yaml").read_text())


def rayjob_schema() -> Any:
    return json.loads((Path(__file__).parent / "rayjob-schema.json").read_text())


def ray_up_schema() -> Any:
    return json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())


def containers() -> Iterator[tuple[str, Any]]:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            yield container["name"], container


def test_the_rayjob_has_the_fields_of_its_custom_resource() -> None:
    jsonschema.validate(rayjob(), rayjob_schema())


def test_the_cluster_of_ray_up_has_the_fields_that_ray_knows() -> None:
    jsonschema.validate(ray_up(), ray_up_schema())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "nas-blockout run quickstart"),
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replica"), 2),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_a_field_of_another_name_or_type_is_refused(path: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(rayjob())
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, rayjob_schema())


def test_a_key_that_ray_up_does_not_know_is_refused() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ray_up(), "worker_ips": []}, ray_up_schema())


def test_the_examples_run_a_study_that_there_is_with_settings_that_there_are() -> None:
    words = rayjob()["spec"]["entrypoint"].split()
    assert words[:2] == ["nas-blockout", "run"]
    assert words[2] in bundled()
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    named = {each["name"] for _, container in containers() for each in container.get("env", [])}
    assert named <= {variable.name for variable in variables()}


def test_only_the_head_has_the_password_of_the_store_and_no_secret_stands_in_the_file() -> None:
    found = dict(containers())
    assert found.keys() == {"ray-head", "ray-worker"}
    assert PREFIX + "STORE_URL" in {each["name"] for each in found["ray-head"]["env"] if "valueFrom" in each}
    assert "env" not in found["ray-worker"]
    text = (EXAMPLES / "rayjob.yaml").read_text()
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)


def test_little_of_a_checkout_is_uploaded(tmp_path: Path) -> None:
    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < MOST_UPLOADED
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    first = {name.partition("/")[0] for name in names}
    assert {"nas_blockout", "search_spaces", "services"} <= first
    assert not first & {".git", ".venv", "runs", "data", "docs", "tests", "benchmarks", ".mypy_cache", ".env"}
