"""The exported model of a study, logged to its run."""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any


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
    mlflow.set_tracking_uri(uri)
    with warnings.catch_warnings(), mlflow.start_run(run_id=run):
        warnings.simplefilter("ignore")
        info = mlflow.pytorch.log_model(
            model, serialization_format="pt2", input_example=images, signature=signature, **options
        )
    return str(info.model_id)
