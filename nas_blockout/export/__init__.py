"""Exported models: written in every form, reloaded in a fresh process without this package, compared, described."""

from nas_blockout.export.cards import ModelDescription
from nas_blockout.export.models import (
    MANIFEST,
    Deployed,
    Verification,
    VerificationError,
    export_model,
    export_models,
    load_weights,
    measure_latency,
    save_weights,
    verify,
    verify_all,
)

__all__ = [
    "MANIFEST",
    "Deployed",
    "ModelDescription",
    "Verification",
    "VerificationError",
    "export_model",
    "export_models",
    "load_weights",
    "measure_latency",
    "save_weights",
    "verify",
    "verify_all",
]
