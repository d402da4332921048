"""`nas-blockout submit`: a study as a job on a Ray cluster, followed from here or left alone."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import (
    DONE,
    FAILED,
    SOME_FAILED,
    TERMINATED,
    USAGE,
    JsonOption,
    SetOption,
    fail,
    log,
    print_json,
    print_line,
)

if TYPE_CHECKING:  # Ray and torch take seconds to import, which other commands need not wait for
    from services.cluster.jobs import Job, Jobs
    from services.study_config.schema import Study

_FIRST_SIGNAL = 128


def submit(
    study: Annotated[str, typer.Argument(help="A bundled study by name, or the path of a YAML file.")],
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="URL",
            help="Dashboard of the cluster, such as http://127.0.0.1:8265; NAS_BLOCKOUT_JOBS_ADDRESS if left out.",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job's log to its end, and end as it does.")
    ] = True,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Run a study as a job on a Ray cluster, with the cluster's own store, tracking server and files.

    The same study is one job: if it runs it is followed, if it has finished that is said, if it failed or was stopped
    a new attempt goes on with it. Ctrl-C leaves the job running.
    """
    from services.cluster.jobs import Jobs
    from services.settings import Settings
    from services.study_config.overrides import read_resolved

    found = address or Settings.from_environment().jobs_address
    if found is None:
        fail(USAGE, "no cluster: give --address http://HOST:8265, or set NAS_BLOCKOUT_JOBS_ADDRESS")
    resolved, _ = read_resolved(study, assignments or ())
    jobs = Jobs(found)
    job = _submitted(jobs, resolved)
    write = log if as_json else print_line
    write(f"job {job.id}, study {resolved.name}, configuration {resolved.hash}, at {jobs.address}")
    if wait and job.living:
        _follow(jobs, job.id, write=write)
        job = jobs.job(job.id) or job
    if as_json:
        facts = {"study": resolved.name, "config_hash": resolved.hash, "address": jobs.address}
        print_json({"job": job.id, **facts, "state": job.state, "exit_code": job.exit_code})
    _end(job)


def _submitted(jobs: "Jobs", study: "Study") -> "Job":
    """Return the job of a study: the living one, the one that did what was asked, or a new attempt."""
    from services.cluster.jobs import job_id

    attempt, last = 0, None
    while (known := jobs.job(job_id(study, attempt))) is not None:
        attempt, last = attempt + 1, known
    if last is not None and (last.living or _has_finished(last)):
        log(f"{last.id} is there already: {last.state}")
        return last
    if last is not None:
        log(f"{last.id} {_ended(last)}; a new attempt goes on with the study")
    if (room := jobs.room(study)) < (wanted := study.config.workers.max_concurrent_trials):
        log(f"warning: the cluster has room for {room} of the {wanted} trials that the study runs at once")
    return jobs.submit(study, attempt=attempt)


def _follow(jobs: "Jobs", job: str, *, write: Callable[[str], None]) -> None:
    """Write the log of a job until it ends; whoever stops that leaves the job alone."""
    try:
        for line in jobs.follow(job):
            write(line)
    except (SystemExit, KeyboardInterrupt):
        log(
            f"the job goes on; the same command follows it again, `ray job stop --address {jobs.address} {job}` ends it"
        )
        raise


def _end(job: "Job") -> None:
    """End as a job did, if it has."""
    if job.living or job.state == "succeeded":
        return
    log(f"{job.id} {_ended(job)}")
    if job.state == "stopped":
        raise typer.Exit(TERMINATED)
    if job.exit_code is None:
        log((job.message.strip().splitlines() or ["Ray does not say why"])[-1])
        raise typer.Exit(FAILED)
    raise typer.Exit(job.exit_code if job.exit_code >= 0 else _FIRST_SIGNAL - job.exit_code)


def _ended(job: "Job") -> str:
    return job.state if job.exit_code is None else f"ended with exit code {job.exit_code}"


def _has_finished(job: "Job") -> bool:
    """Whether a job has ended with a finished study."""
    return job.state == "succeeded" or job.exit_code in (DONE, SOME_FAILED)
