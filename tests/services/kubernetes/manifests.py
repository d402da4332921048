"""Reads services/kubernetes: as the files stand, and as kustomize renders them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "services" / "kubernetes"
GUIDE = ROOT / "docs" / "guides" / "kubernetes.md"
RAYJOB = ROOT / "docs" / "guides" / "examples" / "rayjob.yaml"
SCHEMAS = ROOT / "tests" / "fixtures" / "kubernetes" / "schemas.json"
LEAST_KUSTOMIZE = 5  # older ones know no components, or patch otherwise
SECONDS = 60

Manifest = dict[str, Any]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pod:
    """A template of pods.

    Args:
        name: Of what makes the pods, with the group of a Ray cluster.
        labels: Theirs, with those that KubeRay adds.
        spec: The pods themselves.
    """

    name: str
    labels: Labels
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Any]:
        """All containers, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


@cache
def schemas() -> Any:
    """The schemas of all kinds."""
    return json.loads(SCHEMAS.read_text(encoding="utf-8"))


def errors(manifest: Manifest) -> list[str]:
    """What the schema of its kind says against a manifest."""
    kind = f"{manifest.get('apiVersion')}/{manifest.get('kind')}"
    if kind not in schemas()["kinds"]:
        return [f"{kind}: no such kind"]
    schema = {"$ref": f"#/$defs/{schemas()['kinds'][kind].replace('/', '~1')}", "$defs": schemas()["$defs"]}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)]


def read(*paths: Path) -> list[Manifest]:
    """The manifests in files."""
    return [each for path in paths for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


@cache
def kustomize() -> tuple[str, ...]:
    """The command that renders a folder; skips the test where there is none."""
    for words in (("kubectl", "kustomize"), ("kustomize", "build")):
        if shutil.which(words[0]) and _major(words[0]) >= LEAST_KUSTOMIZE:
            return words
    pytest.skip(f"neither kubectl nor kustomize with kustomize {LEAST_KUSTOMIZE} or newer is there")


def _major(program: str) -> int:
    words = [program, "version", *(["--client"] if program == "kubectl" else [])]
    shown = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS).stdout
    found = re.search(r"(?:Kustomize Version: |^)v(\d+)\.", shown, re.MULTILINE)
    found = re.search(r"Kustomize Version: v(\d+)", shown) if program == "kubectl" else found
    return int(found[1]) if found else 0


@cache
def rendered(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization; nobody may change them."""
    done = subprocess.run([*kustomize(), folder], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def composed(folder: Path, components: Sequence[str]) -> list[Manifest]:
    """The manifests of the base with components, by way of a kustomization in an empty folder."""
    relative = os.path.relpath(FOLDER, folder)
    document = {
        "resources": [f"{relative}/base"],
        "components": [f"{relative}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return rendered(folder)


def of_kind(manifests: Iterable[Manifest], kind: str) -> dict[str, Any]:
    """The manifests of a kind by name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: Iterable[Manifest]) -> Iterator[Pod]:
    """All pods that manifests lead to."""
    for each in manifests:
        name, spec = each["metadata"]["name"], each.get("spec", {})
        if each["kind"] == "Deployment":
            yield Pod(name, spec["template"]["metadata"]["labels"], spec["template"]["spec"])
        elif each["kind"] == "RayCluster":
            yield from _pods_of_ray(name, spec)
        elif each["kind"] == "RayJob":
            yield from _pods_of_ray(name, spec["rayClusterSpec"])
            submitter = spec["submitterPodTemplate"]
            yield Pod(f"{name}/submitter", submitter["metadata"]["labels"], submitter["spec"])


def _pods_of_ray(name: str, cluster: Mapping[str, Any]) -> Iterator[Pod]:
    groups = [("head", "head", cluster["headGroupSpec"])]
    groups += [("worker", group["groupName"], group) for group in cluster["workerGroupSpecs"]]
    for role, group_name, group in groups:
        template = group["template"]
        added = {"ray.io/cluster": name, "ray.io/node-type": role, "ray.io/group": group_name}
        yield Pod(f"{name}/{group_name}", {**template["metadata"]["labels"], **added}, template["spec"])


def selects(selector: Mapping[str, Any] | None, labels: Labels) -> bool:
    """Whether a selector of labels matches, as Kubernetes decides it."""
    if selector is None:
        return False
    for rule in selector.get("matchExpressions", ()):
        among = labels.get(rule["key"]) in rule["values"]
        if among != {"In": True, "NotIn": False}[rule["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def may_connect(policies: Iterable[Any], source: Pod, target: Pod | None, port: int) -> bool:
    """Whether network policies let a pod connect to another, or to a machine outside of the cluster."""
    policies = list(policies)
    leaves = _allowed(policies, "Egress", source, target, target, port)
    return leaves and (target is None or _allowed(policies, "Ingress", target, source, target, port))


def _allowed(policies: list[Any], way: str, subject: Pod, peer: Pod | None, target: Pod | None, port: int) -> bool:
    mine = [each["spec"] for each in policies if selects(each["spec"]["podSelector"], subject.labels)]
    mine = [spec for spec in mine if way in spec["policyTypes"]]
    key, side = ("egress", "to") if way == "Egress" else ("ingress", "from")
    rules = [rule for spec in mine for rule in spec.get(key, ())]
    return not mine or any(_rule_allows(rule, side, peer, target, port) for rule in rules)


def _rule_allows(rule: Mapping[str, Any], side: str, peer: Pod | None, target: Pod | None, port: int) -> bool:
    named = ports_of(target) if target is not None else {}
    at_port = "ports" not in rule or any(named.get(each["port"], each["port"]) == port for each in rule["ports"])
    with_peer = side not in rule or any(
        peer is not None and "namespaceSelector" not in each and selects(each.get("podSelector"), peer.labels)
        for each in rule[side]
    )
    return at_port and with_peer


def ports_of(pod: Pod) -> dict[str, int]:
    """The ports of the containers of a pod by name."""
    return {port["name"]: port["containerPort"] for each in pod.containers for port in each.get("ports", ())}
