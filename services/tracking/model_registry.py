"""The registered model of a study: a version for each model that it has recommended, with aliases."""

import re
from typing import Any

from services.tracking.mlflow_client import TrackingError
from services.tracking.study_identity import STUDY_TAG, StudyIdentity

PREFIX = "nas-blockout."
RECOMMENDED = "recommended"
MODEL_TAG = "nas.model"


def register(client: Any, identity: StudyIdentity, *, arm: str, model: str, run: str, description: str) -> str:
    """Register a logged model, unless it is a version already, and point the aliases to it; return ``name/version``.

    The alias ``recommended`` is the version that the study recommends now, ``arm-<arm>`` the latest one of an arm.

    Args:
        client: Of MLflow.
        identity: Of the study.
        arm: Arm of the model.
        model: ID of the logged model.
        run: ID of the study's run.
        description: Of the registered model, for people.
    """
    name = _tagged(client, identity) or _created(client, identity, description)
    version = _version_of(client, name, model)
    if version is None:
        tags = {**identity.tags, "nas.arm": arm, MODEL_TAG: model}
        created = client.create_model_version(name, f"models:/{model}", run_id=run, tags=tags, model_id=model)
        version = str(created.version)
    aliases = client.get_registered_model(name).aliases
    for alias in (RECOMMENDED, f"arm-{re.sub(r'[^A-Za-z0-9_-]', '-', arm)}"):
        if str(aliases.get(alias)) != version:
            client.set_registered_model_alias(name, alias, version)
    return f"{name}/{version}"


def _tagged(client: Any, identity: StudyIdentity) -> str | None:
    query = f"tags.`{STUDY_TAG}` = '{identity.uuid}'"
    return next((str(model.name) for model in client.search_registered_models(filter_string=query)), None)


def _created(client: Any, identity: StudyIdentity, description: str) -> str:
    """Create the registered model under the first name that no other has; whoever has it is not asked."""
    from mlflow.exceptions import MlflowException

    for name in identity.names:
        try:
            client.create_registered_model(PREFIX + name, tags=identity.tags, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        else:
            return PREFIX + name
    raise TrackingError(f"all of {', '.join(PREFIX + name for name in identity.names)} belong to other studies")


def _version_of(client: Any, name: str, model: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}'")
    return next((str(version.version) for version in found if version.tags.get(MODEL_TAG) == model), None)
