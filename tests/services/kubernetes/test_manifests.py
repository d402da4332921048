"""services/kubernetes: valid by the published schemas, closed, at one with the code and with docker-compose.yml."""

import copy
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import nas_blockout
from services.settings import PREFIX, Settings, variables
from tests.services.kubernetes.manifests import (
    FOLDER,
    GUIDE,
    RAYJOB,
    ROOT,
    Manifest,
    Pod,
    composed,
    errors,
    may_connect,
    of_kind,
    pods,
    ports_of,
    read,
    rendered,
    selects,
)
from tests.services.topology.compose import read_env, services
from tests.services.topology.system import SECRETS

BASE = sorted((FOLDER / "base").glob("[!k]*.yaml"))
QUEUES = sorted((FOLDER / "queues").glob("[!k]*.yaml"))
PLAIN = [*BASE, *QUEUES, FOLDER / "example" / "namespace.yaml", FOLDER / "components" / "kueue" / "queue.yaml", RAYJOB]
COMPONENTS = [(), ("kueue",), ("gpu",), ("s3",), ("oidc",), ("gpu", "s3", "gpu_s3", "kueue", "oidc")]
SECRET = "0a1b2c3d4e5f6789" * 4
COMPOSE = services({**read_env(ROOT / ".env.example"), **dict.fromkeys(SECRETS, SECRET)})
# What programs of others read; all others are settings of ours.
FOREIGN = {
    "FORWARDED_ALLOW_IPS",
    "HOME",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_USAGE_STATS_ENABLED",
}
POSTGRES, MLFLOW, DASHBOARD = 5432, 5000, 8265


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    """The manifests of the base as they stand."""
    return read(*BASE)


@pytest.fixture(scope="module")
def base_pods(base: list[Manifest]) -> dict[str, Pod]:
    return {pod.name: pod for pod in pods(base)}


@pytest.fixture
def all_pods(base: list[Manifest]) -> list[Pod]:
    """All pods that are described anywhere without a patch."""
    return list(pods([*base, *read(RAYJOB)]))


def told(container: Any) -> dict[str, Any]:
    """The variables of a container by name."""
    return {each["name"]: each for each in container.get("env", ())}


def settings_of(container: Any) -> set[str]:
    """The settings of ours that a container is told, by value or in a file."""
    return {name.removesuffix("_FILE") for name in told(container) if name.startswith(PREFIX)}


def secrets_of(pod: Pod) -> set[tuple[str, str]]:
    """Secret and key of all that the containers of a pod are given of secrets, as variables or in files."""
    variables = [each for container in pod.containers for each in told(container).values() if "valueFrom" in each]
    keys = [each["valueFrom"]["secretKeyRef"] for each in variables]
    files = [each["secret"] for each in pod.spec["volumes"] if "secret" in each]
    named = {(each["name"], each["key"]) for each in keys}
    return named | {(each["secretName"], item["key"]) for each in files for item in each["items"]}


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_manifest_has_the_fields_of_its_kind(path: Path) -> None:
    assert {each["metadata"]["name"]: found for each in read(path) if (found := errors(each))} == {}


@pytest.mark.parametrize("components", COMPONENTS, ids="+".join)
def test_the_base_with_components_has_the_fields_of_its_kinds_and_the_volumes_that_it_mounts(
    tmp_path: Path, components: tuple[str, ...]
) -> None:
    manifests = composed(tmp_path, components)
    assert {each["metadata"]["name"]: found for each in manifests if (found := errors(each))} == {}
    claims = set(of_kind(manifests, "PersistentVolumeClaim"))
    for pod in pods(manifests):
        volumes = {each["name"]: each for each in pod.spec["volumes"]}
        assert {mount["name"] for each in pod.containers for mount in each["volumeMounts"]} == set(volumes), pod.name
        claimed = {
            each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
        }
        assert claimed <= claims, pod.name
        assert ("s3" in components) == ("studies" not in claims)


def test_the_example_is_valid_and_what_it_changes_arrives() -> None:
    manifests = rendered(FOLDER / "example")
    assert {each["metadata"]["name"]: found for each in manifests if (found := errors(each))} == {}
    assert {each["metadata"].get("namespace") for each in manifests} == {"nas-blockout", None}
    changes = yaml.safe_load((FOLDER / "example" / "kustomization.yaml").read_text())
    settings = next(each["data"] for each in manifests if each["kind"] == "ConfigMap")
    given = dict(literal.split("=", 1) for literal in changes["configMapGenerator"][0]["literals"])
    assert settings == {**read_env(FOLDER / "base" / "settings.env"), **given}
    used = {
        each["envFrom"][0]["configMapRef"]["name"]
        for pod in pods(manifests)
        for each in pod.containers
        if "envFrom" in each
    }
    assert used == {next(iter(of_kind(manifests, "ConfigMap")))}
    gpu = next(pod for pod in pods(manifests) if pod.name == "ray/gpu")
    assert gpu.spec["nodeSelector"] == {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    }


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "replica"), 2),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "securityContex"), {}),
        ("RayCluster", ("spec", "upgradeStrategy", "type"), "Rolling"),
        ("RayJob", ("spec", "entrypont"), "nas-blockout run quickstart"),
        ("RayJob", ("spec", "backoffLimit"), "2"),
        ("RayJob", ("apiVersion",), "ray.io/v1alpha1"),
        ("Deployment", ("spec", "replicas"), "2"),
        ("Ingress", ("spec", "rules", 0, "http", "paths", 0, "backend", "service", "port", "nmae"), "http"),
        ("ClusterQueue", ("spec", "cohort"), "nas-blockout"),
        ("ClusterQueue", ("spec", "fairSharing", "weight"), [2]),
    ],
)
def test_a_field_of_another_name_or_type_is_refused(kind: str, path: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(next(each for each in read(*PLAIN) if each["kind"] == kind))
    assert errors(changed) == []
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert errors(changed) != []


def test_every_variable_is_a_setting_of_ours_or_of_a_program_that_runs_there(all_pods: list[Pod]) -> None:
    containers = [each for pod in all_pods for each in pod.containers]
    ours = {name for each in containers for name in settings_of(each)} | set(read_env(FOLDER / "base" / "settings.env"))
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.yaml"))
    ours |= {name.removesuffix("_FILE") for name in re.findall(rf"{PREFIX}\w+", text)}
    assert {name for name in ours if name.startswith(PREFIX)} <= {variable.name for variable in variables()}
    foreign = {name for each in containers for name in told(each)} | ours
    assert {name for name in foreign if not name.startswith(PREFIX)} == FOREIGN


SECRET_VALUES = {
    "api-token": SECRET,
    "auth_token": SECRET,
    "store-url": "postgresql+psycopg://nas_blockout:x@host:5432/nas_blockout",
}


def test_the_values_of_settings_are_accepted_and_mean_the_same_as_in_compose(base_pods: dict[str, Pod]) -> None:
    shared = read_env(FOLDER / "base" / "settings.env")
    for pod, service in (("api", "api"), ("worker", "worker"), ("ray/head", "ray-head")):
        variables = told(base_pods[pod].spec["containers"][0]).values()
        given = dict(map(_given, variables)) | (shared if "/" not in pod else {})
        here, there = (Settings.from_environment(each) for each in (given, COMPOSE[service].environment))
        assert here.home == there.home
        assert (here.tracking_uri, here.ray_address) == (there.tracking_uri, there.ray_address)
        assert (here.jobs_address is None) == (there.jobs_address is None) == (pod == "ray/head")


def _given(variable: Any) -> tuple[str, str]:
    """A variable with its value, which may come from a secret, as a variable or in a file."""
    name, value = variable["name"], str(variable.get("value", ""))
    if "valueFrom" in variable:
        return name, SECRET_VALUES[variable["valueFrom"]["secretKeyRef"]["key"]]
    return (
        (name.removesuffix("_FILE"), SECRET_VALUES[value.rpartition("/")[2]])
        if name.endswith("_FILE")
        else (name, value)
    )


def test_files_of_secrets_are_where_the_variables_say(all_pods: list[Pod]) -> None:
    named = 0
    for pod in all_pods:
        items = {item["path"] for each in pod.spec["volumes"] if "secret" in each for item in each["secret"]["items"]}
        for container in pod.containers:
            mounts = {each["mountPath"]: each for each in container["volumeMounts"] if each["name"] == "secrets"}
            for each in told(container).values():
                folder, _, file = str(each.get("value", "")).rpartition("/")
                if each["name"].endswith(("_FILE", "_TOKEN_PATH")):
                    named += 1
                    assert file in items, (pod.name, each)
                    assert mounts[folder]["readOnly"] is True, (pod.name, each)
    assert named > 0


def test_the_secret_of_signing_in_is_a_file_of_the_api_alone_which_reaches_the_provider(tmp_path: Path) -> None:
    manifests = composed(tmp_path, ("oidc",))
    key = ("nas-blockout", "oidc-client-secret")
    assert [pod.name for pod in pods(manifests) if key in secrets_of(pod)] == ["api"]
    api = next(pod for pod in pods(manifests) if pod.name == "api")
    file = told(api.spec["containers"][0])["NAS_BLOCKOUT_OIDC_CLIENT_SECRET_FILE"]["value"]
    assert file == "/run/secrets/nas-blockout/oidc-client-secret"
    policy = of_kind(manifests, "NetworkPolicy")["sign-in"]["spec"]
    assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "api"
    assert policy["egress"] == [{"ports": [{"port": 443, "protocol": "TCP"}]}]


def test_compose_and_kubernetes_tell_the_same_settings(base_pods: dict[str, Pod], tmp_path: Path) -> None:
    shared = {name for name in read_env(FOLDER / "base" / "settings.env") if name.startswith(PREFIX)}
    full = {pod.name: pod for pod in pods(composed(tmp_path, ("oidc",)))}  # the client's secret is its own to add
    ours = shared.union(*(settings_of(full[name].spec["containers"][0]) for name in ("api", "worker")))
    there = {name for service in ("api", "worker") for name in COMPOSE[service].environment if name.startswith(PREFIX)}
    assert ours == {name.removesuffix("_FILE") for name in there}
    for pod, service in (("ray/head", "ray-head"), ("ray/cpu", "ray-worker")):
        names = {name.removesuffix("_FILE") for name in COMPOSE[service].environment if name.startswith(PREFIX)}
        assert settings_of(base_pods[pod].spec["containers"][0]) == names
    defaults = read_env(FOLDER / "base" / "settings.env")
    same = {name: value for name, value in COMPOSE["worker"].environment.items() if name in defaults}
    assert {name: defaults[name] for name in same} == same


def test_compose_and_kubernetes_run_the_same_commands(base_pods: dict[str, Pod]) -> None:
    for name in ("api", "worker", "mlflow"):
        assert tuple(base_pods[name].spec["containers"][0]["command"]) == COMPOSE[name].command
    migrations = [each["command"] for pod in base_pods.values() for each in pod.spec.get("initContainers", ())]
    assert migrations == [list(COMPOSE["migrate"].command)] * 2
    worker = base_pods["worker"].spec["containers"][0]["readinessProbe"]["exec"]["command"]
    assert tuple(worker) == COMPOSE["worker"].health
    for pod in ("ray/head", "ray/cpu"):
        for probe in ("livenessProbe", "readinessProbe"):
            command = base_pods[pod].spec["containers"][0][probe]["exec"]["command"]
            assert tuple(command) == COMPOSE["ray-worker"].health


def test_services_ports_and_addresses_agree(base: list[Manifest], base_pods: dict[str, Pod]) -> None:
    reached = {"ray-head-svc": ports_of(base_pods["ray/head"])["dashboard"]}  # as KubeRay names it
    for name, service in of_kind(base, "Service").items():
        found = [pod for pod in base_pods.values() if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        assert [pod.name for pod in found] == [name]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in ports_of(found[0])
        reached[name] = port["port"]
    addresses = {
        match
        for pod in base_pods.values()
        for each in told(pod.spec["containers"][0]).values()
        for match in re.findall(r"^http://([\w-]+):(\d+)$", each.get("value", ""))
    }
    assert {host for host, _ in addresses} == {"mlflow", "ray-head-svc"}
    assert {(host, str(reached[host])) for host, _ in addresses} == addresses
    backend = of_kind(base, "Ingress")["api"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    port = of_kind(base, "Service")[backend["name"]]["spec"]["ports"][0]
    assert backend["port"]["name"] == port["name"]


def test_probes_ask_ports_that_there_are(base_pods: dict[str, Pod]) -> None:
    for pod in base_pods.values():
        for each in pod.spec["containers"]:
            probes = [each[name] for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in each]
            assert probes, pod.name
            asked = {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe}
            assert asked <= set(ports_of(pod)), pod.name
    command = base_pods["api"].spec["containers"][0]["command"]
    assert f"--port={ports_of(base_pods['api'])['http']}" in command


def test_every_key_of_a_secret_is_made_in_the_guide(all_pods: list[Pod], tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    made = set(re.findall(r"--from-file=([\w-]+)", text.partition("secret generic nas-blockout-storage")[0]))
    used = {pair for pod in (*all_pods, *pods(composed(tmp_path, ("oidc",)))) for pair in secrets_of(pod)}
    assert used == {("nas-blockout", key) for key in made}
    cluster = next(each for each in read(FOLDER / "base" / "ray.yaml"))
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "nas-blockout"}
    named = set(re.findall(r"secretRef: \{name: ([\w-]+)\}", "".join(p.read_text() for p in FOLDER.rglob("*.yaml"))))
    assert named == {"nas-blockout-storage"}
    assert "create secret generic nas-blockout-storage" in text


def test_no_secret_stands_in_a_file_and_pods_that_train_are_given_none(all_pods: list[Pod]) -> None:
    for path in [*FOLDER.rglob("*"), RAYJOB]:
        if path.is_file():
            assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text(encoding="utf-8")), path
    assert of_kind(read(*PLAIN), "Secret") == {}
    training = [pod for pod in all_pods if pod.labels.get("ray.io/node-type") == "worker"]
    assert training
    for pod in training:
        assert secrets_of(pod) == set()
        assert all("envFrom" not in each for each in pod.containers)


def test_images_are_those_of_this_release(all_pods: list[Pod]) -> None:
    image = f"registry.example.org/nas-blockout:{nas_blockout.__version__}"
    assert {each["image"] for pod in all_pods for each in pod.containers} == {image}
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.yaml"))
    tags = re.findall(r"nas-blockout(?:-gpu)?(?::|, newTag: )([\w.]+)", text)
    assert set(tags) == {nas_blockout.__version__}
    versions = [each["spec"]["rayVersion"] for each in read(FOLDER / "base" / "ray.yaml")]
    versions += [each["spec"]["rayClusterSpec"]["rayVersion"] for each in read(RAYJOB)]
    assert set(versions) == {metadata.version("ray")}


@pytest.mark.parametrize("components", [(), ("gpu",)], ids=["base", "gpu"])
def test_pods_meet_the_restricted_standard_and_are_limited(tmp_path: Path, components: tuple[str, ...]) -> None:
    found = [*pods(composed(tmp_path, components) if components else read(*BASE)), *pods(read(RAYJOB))]
    for pod in found:
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        context = pod.spec["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001), pod.name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
        for each in pod.containers:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["requests"].keys() >= {"cpu", "memory"}, pod.name
            assert "memory" in each["resources"]["limits"], pod.name
            writable = {mount["mountPath"] for mount in each["volumeMounts"] if not mount.get("readOnly")}
            assert "/tmp" in writable  # of the pod, where Python, Ray and MLflow write
        assert all(each["emptyDir"].get("sizeLimit") for each in pod.spec["volumes"] if "emptyDir" in each)


def test_the_api_cannot_write_to_the_studies(base_pods: dict[str, Pod]) -> None:
    writes = {
        pod.name
        for pod in base_pods.values()
        for each in pod.containers
        for mount in each["volumeMounts"]
        if mount["name"] == "studies" and not mount.get("readOnly")
    }
    assert writes == {"worker", "ray/head", "ray/cpu"}


def test_policies_and_budgets_select_pods_that_there_are(base: list[Manifest], all_pods: list[Pod]) -> None:
    for policy in of_kind(base, "NetworkPolicy").values():
        assert any(selects(policy["spec"]["podSelector"], pod.labels) for pod in all_pods), policy["metadata"]["name"]
    deployments = of_kind(base, "Deployment")
    for name, budget in of_kind(base, "PodDisruptionBudget").items():
        assert budget["spec"]["selector"] == deployments[name]["spec"]["selector"]
        assert deployments[name]["spec"]["replicas"] > budget["spec"]["minAvailable"]  # else no node can be drained


def test_pods_reach_what_they_need_and_no_more(base: list[Manifest], base_pods: dict[str, Pod]) -> None:
    policies = list(of_kind(base, "NetworkPolicy").values())
    by_name = {**base_pods, **{pod.name: pod for pod in pods(read(RAYJOB))}}
    job = "nas-blockout-quickstart"
    targets = {
        "store": (None, POSTGRES),
        "web": (None, 443),
        "api": (by_name["api"], 8000),
        "mlflow": (by_name["mlflow"], MLFLOW),
        "dashboard": (by_name["ray/head"], DASHBOARD),
        "head": (by_name["ray/head"], 6379),
    }
    reach = {
        name: {to for to, (target, port) in targets.items() if may_connect(policies, pod, target, port)}
        for name, pod in by_name.items()
    }
    drivers, trials = {"store", "mlflow", "dashboard", "head"}, {"dashboard", "head"}
    assert reach == {
        "api": {"store", "mlflow", "dashboard"},
        "worker": {"store", "mlflow", "dashboard"},
        "mlflow": {"store"},
        "ray/head": drivers,
        "ray/cpu": trials,
        f"{job}/head": drivers,
        f"{job}/trials": trials,
        f"{job}/submitter": {"dashboard"},
    }


def test_with_s3_all_that_use_files_know_the_same_place_and_reach_it(tmp_path: Path) -> None:
    manifests = composed(tmp_path, ("gpu", "s3", "gpu_s3"))
    users = {pod.name: pod for pod in pods(manifests) if pod.name != "mlflow"}
    assert users.keys() == {"api", "worker", "ray/head", "ray/cpu", "ray/gpu"}
    places = {name: told(pod.spec["containers"][0]).get(PREFIX + "ARTIFACTS") for name, pod in users.items()}
    assert (
        places["api"]
        == places["worker"]
        == places["ray/head"]
        == {
            "name": PREFIX + "ARTIFACTS",
            "value": "s3://studies/team",
        }
    )
    assert places["ray/cpu"] is places["ray/gpu"] is None  # a task brings the place with it
    policies = of_kind(manifests, "NetworkPolicy").values()
    for name, pod in users.items():
        given = pod.spec["containers"][0]["envFrom"]
        assert {"secretRef": {"name": "nas-blockout-storage"}} in given, name
        assert may_connect(policies, pod, None, 443), name


def test_the_cluster_of_a_team_is_within_the_quota_of_its_queue() -> None:
    manifests, admin = rendered(FOLDER / "example"), read(*QUEUES)
    cluster = of_kind(manifests, "RayCluster")["ray"]
    queue = of_kind(manifests, "LocalQueue")[cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]]
    assert queue["metadata"]["name"] == read(RAYJOB)[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    team = of_kind(admin, "ClusterQueue")[queue["spec"]["clusterQueue"]]
    namespace = of_kind(manifests, "Namespace")["nas-blockout"]
    assert selects(team["spec"]["namespaceSelector"], namespace["metadata"]["labels"])
    quota = {
        resource["name"]: _amount(resource["nominalQuota"])
        for group in team["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    }
    asked: dict[str, float] = {}
    groups = [(1, cluster["spec"]["headGroupSpec"])]
    groups += [(group["replicas"], group) for group in cluster["spec"]["workerGroupSpecs"]]
    for replicas, group in groups:
        for name, amount in group["template"]["spec"]["containers"][0]["resources"]["requests"].items():
            asked[name] = asked.get(name, 0.0) + replicas * _amount(amount)
    assert asked.keys() == quota.keys()  # Kueue admits nothing that asks for a resource without a quota
    assert all(asked[name] <= quota[name] for name in asked)


def test_queues_cover_their_resources_with_flavors_that_there_are() -> None:
    admin = read(*QUEUES)
    flavors, cohorts = of_kind(admin, "ResourceFlavor"), of_kind(admin, "Cohort")
    for name, queue in of_kind(admin, "ClusterQueue").items():
        assert queue["spec"]["cohortName"] in cohorts, name
        assert float(queue["spec"]["fairSharing"]["weight"]) > 0
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                assert flavor["name"] in flavors, name
                assert [each["name"] for each in flavor["resources"]] == group["coveredResources"], name


def test_a_rayjob_runs_a_bundled_study_as_the_service_would(base_pods: dict[str, Pod]) -> None:
    from services.study_config.yaml_reader import bundled

    words = read(RAYJOB)[0]["spec"]["entrypoint"].split()
    assert words[:2] == ["nas-blockout", "run"]
    assert words[2] in bundled()
    job = {pod.name.rpartition("/")[2]: pod for pod in pods(read(RAYJOB))}
    for mine, theirs in (("head", "ray/head"), ("trials", "ray/cpu")):
        given = told(base_pods[theirs].spec["containers"][0])
        given.pop(PREFIX + "RAY_ADDRESS", None)  # a job's cluster is its own
        assert told(job[mine].spec["containers"][0]) == given
        assert (
            job[mine].labels.items() >= {k: v for k, v in base_pods[theirs].labels.items() if "ray.io" not in k}.items()
        )


def test_the_guide_names_the_versions_whose_schemas_are_checked() -> None:
    origin = (ROOT / "tests" / "fixtures" / "kubernetes" / "README.md").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^\| (Kubernetes|KubeRay|Kueue) \| v(\d+\.\d+)", origin, re.MULTILINE))
    assert versions.keys() == {"Kubernetes", "KubeRay", "Kueue"}
    text = GUIDE.read_text(encoding="utf-8")
    for name, version in versions.items():
        assert re.search(rf"{name}[^|\n]* (\| )?{re.escape(version)} or newer", text), name
        assert f"{name} {version}" in text


def _amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi)?", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}[unit]
