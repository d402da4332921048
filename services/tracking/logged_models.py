"""The models of a study in MLflow: logged to its run, and registered, with aliases."""

import hashlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

from services.tracking.mlflow_client import TrackingError, as_mlflow_reads
from services.tracking.study_identity import STUDY_TAG, StudyIdentity

REGISTERED_PREFIX = "nas-blockout."
RECOMMENDED = "recommended"
MODEL_TAG = "nas.model"


def weights_digest(model: Any) -> str:
    """Return a hash of the parameters and buffers of a network."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        version_1 = name.replace("normalize", "normalise")  # so that a model that version 1 logged is recognized
        digest.update(f"{version_1} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def log_program(model: Any, images: Any, options: Mapping[str, Any], *, uri: str, run: str) -> str:
    """Log a model to a run as a torch.export program, without pickle; return its ID. The run is running afterwards.

    Args:
        model: A network in eval mode.
        images: Example input, from which the signature is inferred.
        options: Further arguments of ``mlflow.pytorch.log_model``.
        uri: Tracking URI.
        run: ID of the run.
    """
    import mlflow
    import torch
    from mlflow.models import infer_signature

    with torch.no_grad():
        signature = infer_signature(images, model(torch.from_numpy(images)).numpy())
    mlflow.set_tracking_uri(as_mlflow_reads(uri))
    with warnings.catch_warnings(), mlflow.start_run(run_id=run):
        warnings.simplefilter("ignore")
        info = mlflow.pytorch.log_model(
            model, serialization_format="pt2", input_example=images, signature=signature, **options
        )
    return str(info.model_id)


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


def unregister(client: Any, identity: StudyIdentity) -> None:
    """Delete the registered model of a study, if it has one."""
    if (name := _tagged(client, identity)) is not None:
        client.delete_registered_model(name)


def _tagged(client: Any, identity: StudyIdentity) -> str | None:
    query = f"tags.`{STUDY_TAG}` = '{identity.uuid}'"
    return next((str(model.name) for model in client.search_registered_models(filter_string=query)), None)


def _created(client: Any, identity: StudyIdentity, description: str) -> str:
    """Create the registered model under the first name that no other has; whoever has it is not asked."""
    from mlflow.exceptions import MlflowException

    for name in identity.names:
        try:
            client.create_registered_model(REGISTERED_PREFIX + name, tags=identity.tags, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        else:
            return REGISTERED_PREFIX + name
    raise TrackingError(
        f"all of {', '.join(REGISTERED_PREFIX + name for name in identity.names)} belong to other studies"
    )


def _version_of(client: Any, name: str, model: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}'")
    return next((str(version.version) for version in found if version.tags.get(MODEL_TAG) == model), None)
