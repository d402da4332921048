"""``nas-blockout submit``: run a study as a job on a Ray cluster and follow its log."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import lazy_modules as lazy
from services.cli.console import (
    DONE,
    FAILED,
    SOME_FAILED,
    TERMINATED,
    USAGE,
    JsonOption,
    SetOption,
    StudyArgument,
    fail,
    installation,
    log,
    print_json,
    print_line,
)

if TYPE_CHECKING:
    from services.cluster.jobs import Job, Jobs
    from services.files.shipped_code import Shipment
    from services.study_config.overrides import Origin
    from services.study_config.resolved_study import Study

_SIGNAL_OFFSET = 128  # the shell's exit code for a process that died of signal N is 128 + N; Ray reports -N


def submit(
    study: StudyArgument,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="URL",
            help="Dashboard URL of the cluster, such as http://127.0.0.1:8265. [default: NAS_BLOCKOUT_JOBS_ADDRESS]",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job's log until it ends, and exit with its exit code.")
    ] = True,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Run a study as a job on a Ray cluster, using the store, tracking server and storage configured there.

    Code in files that the study names travels with it, and the modules beside these files that they import.

    Submitting the same study again follows its running job, or reports that it has finished; a job that failed or was
    stopped gets a new attempt, which resumes the study. Ctrl-C leaves the job running.
    """
    dashboard = address or installation().jobs_address
    if dashboard is None:
        fail(USAGE, "no cluster: pass --address http://HOST:8265, or set NAS_BLOCKOUT_JOBS_ADDRESS")
    with lazy.warm_starts.recalling(lazy.earlier_trials.of_home(installation().store_url)):
        resolved, origin = lazy.overrides.read_resolved(study, assignments or ())
    _refuse_local_weights(resolved, origin)
    shipment = lazy.shipped_code.shipment_of(resolved)
    jobs = lazy.jobs.Jobs(dashboard)
    job = _submit_once(jobs, resolved, shipment)
    write = log if as_json else print_line
    write(f"job {job.id}, study {resolved.name}, configuration {shipment.hash}, at {jobs.address}")
    if shipment.files:
        write(f"with the code of {', '.join(sorted(name for name in shipment.files if '__init__' not in name))}")
    if wait and job.living:
        _follow(jobs, job.id, write=write)
        job = jobs.job(job.id) or job
    if as_json:
        facts = {"study": resolved.name, "config_hash": shipment.hash, "address": jobs.address}
        print_json({"job": job.id, **facts, "state": job.state, "exit_code": job.exit_code})
    _end(job)


def _refuse_local_weights(study: "Study", origin: "Origin") -> None:
    """Refuse weights in files of this machine: a job gets study and code alone, and runs where they may not be.

    Raises:
        StudyError: An arm names weights outside of the folder that all machines share.
    """
    settings, problems = installation(), []
    for name, arm in study.arms.items():
        weights = arm.experiment.to_json()["backbone"].get("weights")
        if weights is not None and not settings.allows_weights(weights):
            problems.append(
                f"{origin.source}: arms.{name}.backbone.weights: a file does not travel with a submitted study, got "
                f"{weights}; put it in a folder that all machines have, and name this folder in NAS_BLOCKOUT_WEIGHTS"
            )
    if problems:
        raise lazy.errors.StudyError("\n".join(problems))


def _submit_once(jobs: "Jobs", study: "Study", shipment: "Shipment") -> "Job":
    """Return the job of a study: the one that runs or has finished the study, or else a new attempt.

    Ids of jobs are made of the study's name, its hash and the number of the attempt, so that the attempts of a study
    are found by asking for one after another.
    """
    attempt, last = 0, None
    while (job := jobs.job(lazy.jobs.job_id(study, attempt, shipment))) is not None:
        attempt, last = attempt + 1, job
    if last is not None and (last.living or _has_finished_study(last)):
        log(f"{last.id} was already submitted; state: {last.state}")
        return last
    if last is not None:
        log(f"{last.id} {_end_text(last)}; a new attempt resumes the study")
    if (capacity := jobs.room(study)) < (wanted := study.config.workers.max_concurrent_trials):
        log(f"warning: the cluster has room for {capacity} of the study's {wanted} concurrent trials")
    return jobs.submit(study, attempt=attempt, shipment=shipment)


def _follow(jobs: "Jobs", job: str, *, write: Callable[[str], None]) -> None:
    """Write the log of a job until it ends; a signal ends the following, not the job."""
    try:
        for line in jobs.follow(job):
            write(line)
    except (SystemExit, KeyboardInterrupt):
        log(
            "the job keeps running; run the same command again to follow it, or "
            f"`ray job stop --address {jobs.address} {job}` to stop it"
        )
        raise


def _end(job: "Job") -> None:
    """Exit with the code that stands for the end of a job; return if it runs or has succeeded."""
    if job.living or job.state == "succeeded":
        return
    log(f"{job.id} {_end_text(job)}")
    if job.state == "stopped":
        raise typer.Exit(TERMINATED)
    if job.exit_code is None:
        log((job.message.strip().splitlines() or ["Ray gives no reason"])[-1])
        raise typer.Exit(FAILED)
    raise typer.Exit(job.exit_code if job.exit_code >= 0 else _SIGNAL_OFFSET - job.exit_code)


def _end_text(job: "Job") -> str:
    return job.state if job.exit_code is None else f"ended with exit code {job.exit_code}"


def _has_finished_study(job: "Job") -> bool:
    """Whether a job has ended with a finished study; some of its trials may have failed."""
    return job.state == "succeeded" or job.exit_code in (DONE, SOME_FAILED)
