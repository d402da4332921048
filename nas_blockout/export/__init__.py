"""Exported models: written in every form, reloaded in a fresh process without this package, compared, described."""

from nas_blockout.export.cards import ModelDescription, diagram
from nas_blockout.export.latency import measure_latency, measure_together
from nas_blockout.export.models import (
    Deployed,
    export_model,
    export_models,
    load_weights,
    save_weights,
)
from nas_blockout.export.prediction import ExportedModel
from nas_blockout.export.verification import MANIFEST, Verification, VerificationError, verify, verify_all

__all__ = [
    "MANIFEST",
    "Deployed",
    "ExportedModel",
    "ModelDescription",
    "Verification",
    "VerificationError",
    "diagram",
    "export_model",
    "export_models",
    "load_weights",
    "measure_latency",
    "measure_together",
    "save_weights",
    "verify",
    "verify_all",
]
