"""A cluster of `ray up` has the fields that Ray knows, and little of a checkout is uploaded with a job."""

import json
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "guides" / "examples"
MOST_UPLOADED = 4 << 20


def ray_up() -> Any:
    return yaml.safe_load((EXAMPLES / "ray-up.yaml").read_text())


def ray_up_schema() -> Any:
    return json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())


def test_the_cluster_of_ray_up_has_the_fields_that_ray_knows() -> None:
    jsonschema.validate(ray_up(), ray_up_schema())


def test_a_key_that_ray_up_does_not_know_is_refused() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ray_up(), "worker_ips": []}, ray_up_schema())


def test_little_of_a_checkout_is_uploaded(tmp_path: Path) -> None:
    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < MOST_UPLOADED
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    first = {name.partition("/")[0] for name in names}
    assert {"nas_blockout", "search_spaces", "services"} <= first
    assert not first & {".git", ".venv", "runs", "data", "docs", "tests", "benchmarks", ".mypy_cache", ".env"}
