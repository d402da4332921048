"""Whole studies as Ray jobs: submitted over HTTP to a running cluster, where ``nas-blockout run`` runs each of them.

A job contains its study file and the code in files that this names, and nothing else, in particular no secrets. The
environment of the cluster determines the installed version of ``nas-blockout`` and the locations of the store, the
tracking server and the files. What the service submits has the identities of its store and home as options, by which
a job refuses to run where they are others.
"""

import asyncio
import json
import logging
import os
import shlex
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
from services.files.shipped_code import Shipment
from services.settings import masked
from services.study_config.resolved_study import Study

ANSWER_SECONDS = 10.0
STUDY_FILE = "study.yaml"
ENTRYPOINT = ("nas-blockout", "run", STUDY_FILE)
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray prefers these variables to the address passed to it
# The environment belongs to the whole process: while one thread has removed the variables above, another one that
# connects must not see the gap or restore them too early.
_ENVIRONMENT = threading.Lock()
# Ray logs every upload and connection at level INFO, which would end up between our lines of output.
_NOISY_LOGGERS = (
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
        state: Its state.
        message: Ray's explanation of the state; for a failed job it includes the end of the log.
        exit_code: Exit code of ``nas-blockout run``, negative if a signal ended it; None while it runs, or if it was
            stopped or its node died.
        metadata: ``study``, ``config_hash`` and ``nas_blockout``, the version that submitted it.
    """

    id: str
    state: State
    message: str = ""
    exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def living(self) -> bool:
        """Whether the job has not ended, so that its state may still change."""
        return self.state in ("pending", "running")


@dataclass(frozen=True, slots=True)
class Node:
    """Total resources of one machine of a cluster, whether free or in use."""

    cpus: float
    gpus: float


class Jobs:
    """The job server of a cluster; connects on first use.

    Args:
        address: Address of the cluster's dashboard, such as ``http://127.0.0.1:8265``. The token is looked for in the
            same places as Ray does: ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.

    Raises:
        ClusterError: The address is not an HTTP address, or contains a token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ClusterError(
                "jobs are submitted to the dashboard of a cluster, such as http://127.0.0.1:8265, "
                f"got {masked(address)!r}"
            )
        if "@" in address:
            raise ClusterError(f"{masked(address)}: set the token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, not here")
        self.address = address.rstrip("/")
        self._connected: Any = None

    def submit(
        self, study: Study, *, attempt: int = 0, options: Sequence[str] = (), shipment: Shipment | None = None
    ) -> Job:
        """Submit a study, or return its job if this attempt was submitted before, whatever the state of the job.

        Args:
            study: The resolved study.
            attempt: Number of the attempt, from 0.
            options: Further words of its command, options of ``nas-blockout run``.
            shipment: The study with code in files that travels with it; None for the study as it is.

        Raises:
            ClusterError: The cluster cannot be reached, rejects our token, or is too small for one trial.
        """
        sent = shipment or Shipment(study.to_json(), {})
        name = job_id(study, attempt, shipment)
        if (known := self.job(name)) is not None:
            return known
        self.room(study)  # Ray would queue a job whose trials fit on no node, and the job would wait forever
        with self._translated_errors(), tempfile.TemporaryDirectory(prefix="nas-blockout-") as folder:
            (Path(folder) / STUDY_FILE).write_text(_file(sent.document), encoding="utf-8")
            for path, text in sent.files.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_bytes(text)
            try:
                self._client().submit_job(
                    entrypoint=shlex.join((*ENTRYPOINT, *options)),
                    submission_id=name,
                    runtime_env={"working_dir": folder},
                    metadata={"study": study.name, "config_hash": sent.hash, "nas_blockout": __version__},
                )
            except RuntimeError as error:
                if "already exists" not in str(error):  # otherwise another process has just submitted it
                    raise
        return self.job(name) or Job(name, "pending")

    def job(self, id: str) -> Job | None:  # `id` shadows a builtin, but is what Ray calls it
        """Return a job, or None if the cluster does not know it; a cluster whose head was restarted has lost all jobs.

        Raises:
            ClusterError: The cluster cannot be reached or rejects our token.
        """
        with self._translated_errors():
            # Not `get_job_info`, which raises a RuntimeError whether the job does not exist or anything else fails.
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
        """Stop a job; do nothing if it has ended or the cluster does not know it.

        Raises:
            ClusterError: The cluster cannot be reached or rejects our token.
        """
        job = self.job(id)
        if job is not None and job.living:
            with self._translated_errors():
                self._client().stop_job(id)

    def follow(self, id: str) -> Iterator[str]:
        """Yield the lines of a job's log, from its beginning until the job ends.

        Raises:
            ClusterError: The cluster cannot be reached, or the connection is lost.
        """
        import aiohttp

        rest = ""  # chunks end anywhere, so the last line of a chunk may continue in the next one
        with self._translated_errors():
            try:
                for chunk in _synchronous(self._client().tail_job_logs(id)):
                    *lines, rest = (rest + chunk).split("\n")
                    yield from lines
            except aiohttp.ClientError as error:  # some of its subclasses are not an OSError, see `_translated_errors`
                raise ConnectionError(str(error)) from error
        if rest:
            yield rest

    def capacity(self) -> Mapping[str, float]:
        """Return the total CPUs and GPUs of the cluster, whether free or in use.

        Raises:
            ClusterError: The cluster cannot be reached or rejects our token.
        """
        nodes = self.nodes()
        return {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}

    def version(self) -> str:
        """Return the version of Ray that the cluster runs.

        Raises:
            ClusterError: The cluster cannot be reached or rejects our token.
        """
        with self._translated_errors():
            answer = self._client()._do_request("GET", "/api/version")
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            return str(answer.json()["ray_version"])

    def nodes(self) -> tuple[Node, ...]:
        """Return the CPUs and GPUs of every machine of the cluster that is alive.

        Raises:
            ClusterError: The cluster cannot be reached or rejects our token.
        """
        with self._translated_errors():
            answer = self._client()._do_request("GET", "/api/v0/nodes")
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            rows = answer.json()["data"]["result"]["result"]
        totals = [row.get("resources_total") or {} for row in rows if row["state"] == "ALIVE"]
        return tuple(Node(float(total.get("CPU", 0)), float(total.get("GPU", 0))) for total in totals)

    def room(self, study: Study) -> int:
        """Return how many trials of a study the cluster can run at the same time if nothing else runs on it.

        Raises:
            ClusterError: Not a single trial fits, or the cluster cannot be reached.
        """
        workers, nodes = study.config.workers, self.nodes()
        ranks, apart = workers.ranks_of_trial, workers.rank_placement == "several-nodes"
        trials = room(nodes, cpus=workers.cpus, gpus=workers.gpus, ranks=ranks, apart=apart)
        if not trials:
            raise ClusterError(
                lacking_room(study.name, nodes, cpus=workers.cpus, gpus=workers.gpus, ranks=ranks, apart=apart)
            )
        return trials

    def _client(self) -> Any:
        if self._connected is None:
            self._connected = _connect(self.address)
        return self._connected

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate errors of Ray, HTTP and sockets into a `ClusterError` whose message is one line with a remedy."""
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
        except (
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
        ) as error:  # before OSError: some errors of requests are both
            raise ClusterError(
                f"Ray's job server at {self.address} did not answer as one: {_last_line(error)}; is it the dashboard "
                "of a cluster with ray[default]?"
            ) from error
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"Ray's dashboard cannot be reached at {self.address}: {_reason(error)}; start the cluster (`ray start "
                "--head --dashboard-host=...`), or correct --address or NAS_BLOCKOUT_JOBS_ADDRESS"
            ) from error


def job_id(study: Study, attempt: int = 0, shipment: Shipment | None = None) -> str:
    """Return the submission id of an attempt; it depends on study and code alone, so nothing is submitted twice."""
    return f"nas-blockout-{study.name}-{(shipment or study).hash[:12]}-{attempt}"


def room(nodes: Sequence[Node], *, cpus: float, gpus: float, ranks: int = 1, apart: bool = False) -> int:
    """Return how many trials can run at the same time.

    A rank cannot be spread over several nodes, and a fraction of a GPU cannot be spread over several GPUs.

    Args:
        nodes: The machines.
        cpus: CPUs of one rank of a trial, positive.
        gpus: GPUs of one trial: 0, a fraction below 1, or a whole number.
        ranks: Processes that train one trial.
        apart: Whether these may be on several nodes.
    """
    if apart:
        return sum(_room(node, cpus=cpus, gpus=gpus / ranks) for node in nodes) // ranks
    cpus *= ranks
    return sum(_room(node, cpus=cpus, gpus=gpus) for node in nodes)


def lacking_room(
    study: str, nodes: Sequence[Node], *, cpus: float, gpus: float, ranks: int = 1, apart: bool = False
) -> str:
    """Return what to say of a study of which not a single trial fits; arguments as of `room`."""
    where = f"in {ranks} parts, each on one node" if apart else "on one node"
    return (
        f"one trial of study {study!r} needs {resources_text(cpus * ranks, gpus)} {where}, the cluster has "
        f"{_described(nodes)}; lower workers.cpus or workers.gpus of the study, or add a node"
    )


def _room(node: Node, *, cpus: float, gpus: float) -> int:
    by_cpus = int(node.cpus // cpus)
    if gpus <= 0:
        return by_cpus
    # 1 / gpus may be rounded to just below a whole number, as for gpus = 1 / 93: hence the small addition.
    by_gpus = int(node.gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(node.gpus // gpus)
    return min(by_cpus, by_gpus)


def resources_text(cpus: float, gpus: float) -> str:
    """Return numbers of CPUs and GPUs as text."""
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"


def _described(nodes: Sequence[Node]) -> str:
    counts = {node: nodes.count(node) for node in sorted(set(nodes), key=lambda node: (-node.gpus, -node.cpus))}
    parts = [
        f"{count} node{'s' * (count > 1)} of {resources_text(node.cpus, node.gpus)}" for node, count in counts.items()
    ]
    return "; ".join(parts) or "no nodes"


def _file(resolved: Mapping[str, Any]) -> str:
    """Return the resolved study as YAML, so that the defaults of the version on the cluster do not apply."""
    document = json.loads(json.dumps(resolved))  # without shared objects: PyYAML writes these as aliases
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _connect(address: str) -> Any:
    """Return Ray's client for exactly this address; unlike Ray's, its requests have a time limit."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS, **options})

    for name in _NOISY_LOGGERS:
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
    loop = asyncio.new_event_loop()  # one loop for all items: the iterator's connection belongs to it
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
    """Return the last line of an error message; in a traceback of the server, it says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]


def _reason(error: BaseException) -> str:
    """Return why a connection failed: the message of the innermost error, without those of the HTTP libraries."""
    while (cause := error.__cause__ or error.__context__) is not None and isinstance(cause, OSError):
        error = cause
    return " ".join(str(error).split()) or type(error).__name__
