"""Reads docker-compose.yml as Docker Compose does: variables, merged parts, and what each service is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<rule>:[-?])(?P<word>[^}]*))?\})")


class MissingVariable(ValueError):
    """A variable that must be set is not, or is empty; the message is that of the file."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service, with all variables replaced."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ports: tuple[int, ...]
    published: Mapping[int, int]
    volumes: Mapping[str, str]
    after: Mapping[str, str]
    health: tuple[str, ...] | None
    restarts: bool
    profiles: tuple[str, ...]


def read_env(path: Path) -> dict[str, str]:
    """Variables of an ``.env`` file."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """A value of the file with ``${NAME}``, ``${NAME:-word}``, ``${NAME:?message}`` and ``$$`` replaced."""
    if isinstance(value, Mapping):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    return _VARIABLE.sub(lambda match: _word(match, variables), value) if isinstance(value, str) else value


def _word(match: "re.Match[str]", variables: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    found = variables.get(match["name"], "")
    if found or match["rule"] is None:
        return found
    if match["rule"] == ":?":
        raise MissingVariable(f"{match['name']}: {match['word']}")
    return match["word"]


def document(variables: Mapping[str, str], file: Path = FILE) -> dict[str, Any]:
    """The whole file, merged and with its variables replaced."""
    found: dict[str, Any] = interpolate(yaml.safe_load(file.read_text(encoding="utf-8")), variables)
    return found


def services(variables: Mapping[str, str], file: Path = FILE) -> dict[str, Service]:
    """The services of the file by name."""
    return {name: _service(name, given) for name, given in document(variables, file)["services"].items()}


def _service(name: str, given: Mapping[str, Any]) -> Service:
    health = given.get("healthcheck", {}).get("test")
    kind, *words = health or [None]
    return Service(
        name=name,
        image=given["image"],
        command=tuple(map(str, given["command"])),
        environment={key: str(value) for key, value in given.get("environment", {}).items()},
        ports=tuple(int(port) for port in given.get("expose", ())),
        published=dict(_published(port) for port in given.get("ports", ())),
        volumes={target: source for source, target, *_ in (volume.split(":") for volume in given.get("volumes", ()))},
        after={other: rule["condition"] for other, rule in given.get("depends_on", {}).items()},
        health=None if health is None else tuple(["sh", "-c", *words] if kind == "CMD-SHELL" else words),
        restarts=given.get("restart") == "unless-stopped",
        profiles=tuple(given.get("profiles", ())),
    )


def _published(port: str) -> tuple[int, int]:
    """A port of a service and the port of the machine that it is published as."""
    _, outside, inside = port.split(":")
    return int(inside), int(outside)
