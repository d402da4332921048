"""The experiment of a study in MLflow: its own, whatever other stores have written under the same name."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.tracking.mlflow_client import TrackingError
from services.tracking.study_identity import STUDY_TAG, StudyIdentity

PREFIX = "nas-blockout/"
KIND = {
    "mlflow.experimentKind": "custom_model_development"
}  # else its pages guess one; their switch of modes goes first
NOTE = "mlflow.note.content"  # what the pages show as the description
NOTE_DIGEST = "nas.description.digest"  # of the description as it was written here
_DIGEST_CHARACTERS = 16
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Located:
    """The experiment of a study.

    Args:
        id: Its ID.
        name: Its name.
        artifacts: Where its files lie, as MLflow has recorded it.
        restored: Whether it had been deleted.
        tags: Its tags.
    """

    id: str
    name: str
    artifacts: str
    restored: bool
    tags: Mapping[str, str]


def locate(
    client: Any,
    identity: StudyIdentity,
    *,
    description: Callable[[str], str],
    artifacts: Callable[[str], str | None],
    recognizes: Callable[[Any], bool],
    restore: bool,
) -> Located:
    """Return the experiment of a study, creating it if need be.

    It is known by the study's UUID in its tags, under whatever name. An experiment without one, of a release before
    there were identities, is adopted if it holds this study. One of another study keeps the name, and this study gets
    the next of its names.

    Args:
        client: Of MLflow.
        identity: Of the study.
        description: Returns that of an experiment with an ID, for people, unless they have written another; the ID of
            one that does not exist yet is empty.
        artifacts: Returns where the files of a new experiment of that name should lie; None leaves it to the server.
        recognizes: Whether an experiment without an identity holds this study and no other.
        restore: Whether to restore the experiment if it has been deleted.

    Raises:
        TrackingError: It has been deleted, and is not to be restored.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(_ATTEMPTS):
        found = _tagged(client, identity) or _named(client, identity, recognizes)
        if not isinstance(found, str):
            text = description(str(found.experiment_id))
            return _usable(client, identity, found, description=text, restore=restore)
        text = description("")
        tags = {**identity.tags, **KIND, NOTE: text, NOTE_DIGEST: _digest(text)}
        try:  # with its tags in one call: whoever comes second sees whose it is
            client.create_experiment(PREFIX + found, artifact_location=artifacts(found), tags=tags)
        except MlflowException as error:
            # Another store was faster with the name: the next round finds it there, and whose it is.
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or attempt == _ATTEMPTS - 1:
                raise
    raise TrackingError(f"the experiment {PREFIX}{identity.name} was created, but MLflow does not find it")


def discard_experiment(client: Any, identity: StudyIdentity) -> None:
    """Delete the runs of a study, and its experiment if nothing else is in it; its name is free then.

    MLflow keeps what is deleted until its operator runs ``mlflow gc``, and its name with it: the experiment therefore
    gets another name first. Doing this again does nothing.
    """
    from mlflow.entities import ViewType

    experiment = _tagged(client, identity)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        return
    identifier = str(experiment.experiment_id)
    while runs := client.search_runs([identifier], f"tags.`{STUDY_TAG}` = '{identity.uuid}'", ViewType.ACTIVE_ONLY):
        for run in runs:
            client.delete_run(run.info.run_id)
    if not client.search_runs([identifier], "", ViewType.ACTIVE_ONLY, max_results=1):
        client.rename_experiment(identifier, f"{PREFIX}{identity.names[-1]}.deleted")
        client.delete_experiment(identifier)


def _tagged(client: Any, identity: StudyIdentity) -> Any | None:
    from mlflow.entities import ViewType

    query = f"tags.`{STUDY_TAG}` = '{identity.uuid}'"
    found = client.search_experiments(view_type=ViewType.ALL, filter_string=query, order_by=["creation_time ASC"])
    return next(iter(found), None)


def _named(client: Any, identity: StudyIdentity, recognizes: Callable[[Any], bool]) -> Any:
    """Return the experiment of an earlier release that holds the study, or the first name that is free."""
    for name in identity.names:
        experiment = client.get_experiment_by_name(PREFIX + name)
        if experiment is None:
            return name
        if STUDY_TAG not in experiment.tags and recognizes(experiment):
            return experiment
    raise TrackingError(f"all of {', '.join(PREFIX + name for name in identity.names)} belong to other studies")


def _usable(client: Any, identity: StudyIdentity, experiment: Any, *, description: str, restore: bool) -> Located:
    """Restore an experiment if it was deleted, and give it the tags that it lacks."""
    identifier, deleted = str(experiment.experiment_id), experiment.lifecycle_stage == "deleted"
    if deleted and not restore:
        raise TrackingError(
            f"the MLflow experiment {experiment.name} has been deleted: `nas-blockout sync {identity.name}` restores it"
        )
    if deleted:
        client.restore_experiment(identifier)
    present, wanted = experiment.tags, {**KIND, **identity.tags}
    # Whoever has changed the description or the kind keeps what they wrote.
    if present.get(NOTE, "") == "" or present.get(NOTE_DIGEST) == _digest(present[NOTE]):
        wanted |= {NOTE: description, NOTE_DIGEST: _digest(description)}
    for key, value in wanted.items():
        if present.get(key) != value and not (key in KIND and key in present):
            client.set_experiment_tag(identifier, key, value)
    return Located(identifier, str(experiment.name), str(experiment.artifact_location), deleted, {**present, **wanted})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
