"""Whole studies as Ray jobs: submitted over HTTP to a running cluster, where each is driven by ``nas-blockout run``.

The cluster's own environment decides which program that is and where store, tracking server and files are: a job brings
nothing but its study file, and no secret.
"""

import asyncio
import json
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import yaml

from nas_blockout import __version__
from services.cluster.connection import ClusterError, token
from services.settings import masked
from services.study_config.resolved_study import Study

ANSWER_SECONDS = 10.0
STUDY_FILE = "study.yaml"
ENTRYPOINT = f"nas-blockout run {STUDY_FILE}"
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray lets these win over the address that it is given
_ENVIRONMENT = threading.Lock()
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)

State = Literal["pending", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Job:
    """A study on a cluster.

    Args:
        id: Its submission id.
        state: Where it stands.
        message: What Ray says of that; of a failed job with the end of its log.
        exit_code: Of ``nas-blockout run``: negative for the signal that ended it, None while it runs, or if it was
            stopped or died with its node.
        metadata: ``study``, ``config_hash`` and ``nas_blockout``, the version that submitted it.
    """

    id: str
    state: State
    message: str = ""
    exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def living(self) -> bool:
        """Whether it may still change."""
        return self.state in ("pending", "running")


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine of a cluster has in all, free or not."""

    cpus: float
    gpus: float


class Jobs:
    """The job server of a cluster; connects when it is first asked for something.

    Args:
        address: Of the cluster's dashboard, such as ``http://127.0.0.1:8265``. Ray's token is taken from where Ray
            itself looks for it: ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.

    Raises:
        ClusterError: It is no such address.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ClusterError(
                "jobs are submitted to the dashboard of a cluster, such as http://127.0.0.1:8265, "
                f"got {masked(address)!r}"
            )
        if "@" in address:
            raise ClusterError(f"{masked(address)}: a token stands in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, not here")
        self.address = address.rstrip("/")
        self._connected: Any = None

    def submit(self, study: Study, *, attempt: int = 0) -> Job:
        """Submit a study, or return the job that this attempt at it already is, whatever its state.

        Args:
            study: The resolved study.
            attempt: Number of the attempt, from 0.

        Raises:
            ClusterError: The cluster cannot be reached, does not know our token, or is too small for one trial.
        """
        name = job_id(study, attempt)
        if (known := self.job(name)) is not None:
            return known
        self.room(study)
        with self._explained(), tempfile.TemporaryDirectory(prefix="nas-blockout-") as folder:
            (Path(folder) / STUDY_FILE).write_text(_file(study), encoding="utf-8")
            try:
                self._client().submit_job(
                    entrypoint=ENTRYPOINT,
                    submission_id=name,
                    runtime_env={"working_dir": folder},
                    metadata={"study": study.name, "config_hash": study.hash, "nas_blockout": __version__},
                )
            except RuntimeError as error:
                if "already exists" not in str(error):  # else another process submitted it just now
                    raise
        return self.job(name) or Job(name, "pending")

    def job(self, id: str) -> Job | None:  # Ray's own word
        """Return a job, or None if the cluster does not know it; a cluster whose head died has forgotten all jobs.

        Raises:
            ClusterError: The cluster cannot be reached or does not know our token.
        """
        with self._explained():
            answer = self._client()._do_request("GET", f"/api/jobs/{id}")
            if answer.status_code == 404:
                return None
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            document = answer.json()
        state = cast(State, document["status"].lower())
        metadata = MappingProxyType(dict(document.get("metadata") or {}))
        return Job(id, state, document.get("message") or "", document.get("driver_exit_code"), metadata)

    def stop(self, id: str) -> None:
        """Stop a job; one that has ended, or that the cluster does not know, is left alone.

        Raises:
            ClusterError: The cluster cannot be reached or does not know our token.
        """
        job = self.job(id)
        if job is not None and job.living:
            with self._explained():
                self._client().stop_job(id)

    def follow(self, id: str) -> Iterator[str]:
        """Yield the lines of a job's log, from its beginning until the job ends.

        Raises:
            ClusterError: The cluster cannot be reached, or has gone away.
        """
        import aiohttp

        rest = ""
        with self._explained():
            try:
                for chunk in _synchronous(self._client().tail_job_logs(id)):
                    *lines, rest = (rest + chunk).split("\n")
                    yield from lines
            except aiohttp.ClientError as error:
                raise ConnectionError(str(error)) from error
        if rest:
            yield rest

    def capacity(self) -> Mapping[str, float]:
        """Return the CPUs and GPUs of the whole cluster, free or not.

        Raises:
            ClusterError: The cluster cannot be reached or does not know our token.
        """
        nodes = self.nodes()
        return {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}

    def version(self) -> str:
        """Return the version of Ray that the cluster runs.

        Raises:
            ClusterError: The cluster cannot be reached or does not know our token.
        """
        with self._explained():
            answer = self._client()._do_request("GET", "/api/version")
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            return str(answer.json()["ray_version"])

    def nodes(self) -> tuple[Node, ...]:
        """Return the CPUs and GPUs of every living machine of the cluster.

        Raises:
            ClusterError: The cluster cannot be reached or does not know our token.
        """
        with self._explained():
            answer = self._client()._do_request("GET", "/api/v0/nodes")
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            rows = answer.json()["data"]["result"]["result"]
        totals = [row.get("resources_total") or {} for row in rows if row["state"] == "ALIVE"]
        return tuple(Node(float(total.get("CPU", 0)), float(total.get("GPU", 0))) for total in totals)

    def room(self, study: Study) -> int:
        """Return how many trials of a study the cluster can run at once if it does nothing else.

        Raises:
            ClusterError: Not a single trial fits, or the cluster cannot be reached.
        """
        workers, nodes = study.config.workers, self.nodes()
        trials = room(nodes, cpus=workers.cpus, gpus=workers.gpus)
        if not trials:
            raise ClusterError(
                f"one trial of study {study.name!r} needs {_resources(workers.cpus, workers.gpus)} on one node, "
                f"the cluster has {_described(nodes)}; lower workers.cpus or workers.gpus of the study, or add a node"
            )
        return trials

    def _client(self) -> Any:
        if self._connected is None:
            self._connected = _connect(self.address)
        return self._connected

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of Ray, HTTP and sockets into one line that says what to do."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except ClusterError:
            raise
        except AuthenticationError:
            raise ClusterError(
                f"Ray at {self.address} does not accept our token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the "
                "file, to the token that the cluster was started with"
            ) from None
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # before OSError: requests' are both
            raise ClusterError(
                f"Ray's job server at {self.address} did not answer as one: {_last_line(error)}; is it the dashboard "
                "of a cluster with ray[default]?"
            ) from error
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"Ray's dashboard cannot be reached at {self.address}: {_reason(error)}; start the cluster (`ray start "
                "--head --dashboard-host=...`), or correct --address or NAS_BLOCKOUT_JOBS_ADDRESS"
            ) from error


def job_id(study: Study, attempt: int = 0) -> str:
    """Return the submission id of an attempt at a study: the same study is the same job."""
    return f"nas-blockout-{study.name}-{study.hash[:12]}-{attempt}"


def room(nodes: Sequence[Node], *, cpus: float, gpus: float) -> int:
    """Return how many trials fit at once, each on one node, and a fraction of a GPU on one GPU.

    Args:
        nodes: The machines.
        cpus: CPUs of one trial, positive.
        gpus: GPUs of one trial: 0, a fraction below 1, or a whole number.
    """
    return sum(_room(node, cpus=cpus, gpus=gpus) for node in nodes)


def _room(node: Node, *, cpus: float, gpus: float) -> int:
    by_cpus = int(node.cpus // cpus)
    if gpus <= 0:
        return by_cpus
    by_gpus = int(node.gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(node.gpus // gpus)
    return min(by_cpus, by_gpus)


def _resources(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"


def _described(nodes: Sequence[Node]) -> str:
    counted = {node: nodes.count(node) for node in sorted(set(nodes), key=lambda node: (-node.gpus, -node.cpus))}
    parts = [
        f"{count} node{'s' * (count > 1)} of {_resources(node.cpus, node.gpus)}" for node, count in counted.items()
    ]
    return "; ".join(parts) or "no nodes"


def _file(study: Study) -> str:
    """Return the resolved study as YAML, so that the defaults of the version on the cluster do not apply."""
    document = json.loads(json.dumps(study.to_json()))  # a copy without shared objects: study files refuse YAML aliases
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _connect(address: str) -> Any:
    """Return Ray's client for exactly this address, with a time limit on every request."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS, **options})

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    secret = token()
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    with _ENVIRONMENT:
        overrides = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
        try:
            return Client(address, headers=headers)
        finally:
            os.environ.update(overrides)


def _synchronous(chunks: AsyncIterator[str]) -> Iterator[str]:
    """Yield the items of an asynchronous iterator."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(chunks))
            except StopAsyncIteration:
                return
    finally:
        for task in asyncio.all_tasks(loop):  # the caller stopped while the next chunk was awaited
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _last_line(error: Exception) -> str:
    """Return the line of an error message that says what went wrong: the last one of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]


def _reason(error: BaseException) -> str:
    """Return why a connection failed, without the names of the layers above."""
    while (below := error.__cause__ or error.__context__) is not None and isinstance(below, OSError):
        error = below
    return " ".join(str(error).split()) or type(error).__name__
