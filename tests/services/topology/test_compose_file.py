"""docker-compose.yml, .env.example and the image: valid, closed to the outside, without a secret of their own."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.settings import variables
from tests.services.topology.compose import FILE, ROOT, MissingVariable, document, interpolate, read_env, services
from tests.services.topology.system import SECRETS

EXAMPLE = ROOT / ".env.example"
FILLED = {**read_env(EXAMPLE), **dict.fromkeys(SECRETS, "0a" * 32)}
TOOLS = (["docker", "compose"], ["docker-compose"])
ONE_SHOT = {"databases", "migrate"}


@pytest.fixture
def compose() -> dict[str, Any]:
    return document(FILLED)


def tool() -> list[str]:
    for words in TOOLS:
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0
        ):
            return words
    pytest.skip("neither `docker compose` nor `docker-compose` is there (Debian: apt-get install docker-compose)")


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]], ids=["plain", "gpu"])
def test_docker_compose_accepts_the_file(tmp_path: Path, profile: list[str]) -> None:
    env = tmp_path / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in FILLED.items()))
    command = [*tool(), "--env-file", str(env), "--file", str(FILE), *profile, "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = yaml.safe_load(done.stdout)["services"]
    expected = {name for name, service in services(FILLED).items() if profile or not service.profiles}
    assert set(seen) >= expected
    for name in expected:  # our reader sees what the real one sees
        assert [str(word) for word in seen[name]["command"]] == list(services(FILLED)[name].command)
        assert {key: str(value) for key, value in seen[name].get("environment", {}).items()} == dict(
            services(FILLED)[name].environment
        )


def test_docker_compose_refuses_a_missing_secret(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text(EXAMPLE.read_text())
    command = [*tool(), "--env-file", str(env), "--file", str(FILE), "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "openssl rand -hex 32" in done.stderr


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", [None, ""])
def test_nothing_starts_without_any_of_the_secrets(name: str, value: str | None) -> None:
    given = {key: item for key, item in FILLED.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(MissingVariable, match=f"{name}: set it in .env"):
        document(given)


def test_the_example_names_every_variable_and_gives_no_secret() -> None:
    text, example = FILE.read_text(), EXAMPLE.read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    named = set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))
    assert named == used
    assert {name for name, value in read_env(EXAMPLE).items() if value} == set()
    assert set(read_env(EXAMPLE)) == set(SECRETS)
    defaults = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", text))
    shown = dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE))
    assert shown == defaults


def test_variables_are_replaced_as_compose_does() -> None:
    given = {"A": "a", "EMPTY": ""}
    assert interpolate(["${A}", "${B:-b}", "${EMPTY:-e}", "$$A", "x${A}y", 5, "${B}"], given) == [
        *("a", "b", "e", "$A", "xay", 5, ""),
    ]


def test_published_ports_are_bound_to_the_loopback(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in compose["services"]["postgres"]


def test_every_service_is_limited_healthy_and_restarted(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "mem_limit" in service, name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        assert ("healthcheck" in service) == (name not in ONE_SHOT), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        if name != "postgres":
            assert service["depends_on"], name
        for other, rule in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert rule["condition"] == wanted, (name, other)


def test_a_health_check_asks_its_service_by_its_name(compose: dict[str, Any]) -> None:
    by_name = {name for name in compose["services"] if f"{name}:" in " ".join(services(FILLED)[name].health or ())}
    assert by_name == {"postgres", "mlflow", "ray-head", "api"}
    assert "localhost" not in " ".join(services(FILLED)["api"].health or ())


def test_only_what_needs_the_records_reaches_them(compose: dict[str, Any]) -> None:
    reach = {name for name, service in compose["services"].items() if "records" in service["networks"]}
    assert reach == {"postgres", "databases", "migrate", "mlflow", "ray-head", "api", "worker"}
    for name in ("ray-worker", "ray-worker-gpu"):
        assert not {
            key for key in compose["services"][name]["environment"] if key.endswith(("_URL", "_URI", "PASSWORD"))
        }


def test_services_are_told_only_settings_that_exist(compose: dict[str, Any]) -> None:
    known = {variable.name for variable in variables()}
    told = {key for service in compose["services"].values() for key in service.get("environment", {})}
    assert {key for key in told if key.startswith("NAS_BLOCKOUT_")} <= known


def test_the_image_runs_as_an_ordinary_user_from_pinned_versions() -> None:
    text = (ROOT / "services" / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "--constraint constraints.txt" in text
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    images = {service["image"] for service in document(FILLED)["services"].values()}
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_the_image_is_built_from_the_packages_alone() -> None:
    given = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert given[0] == "*"
    kept = {line[1:] for line in given if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "services" / "Dockerfile").read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)
