"""What a study leaves behind once its trials have ended: comparison, exported models, report, runs in MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nas_blockout.architecture import Architecture
from nas_blockout.data import Splits
from nas_blockout.experiment import Experiment, rebuild
from nas_blockout.export import ModelDescription, export_model, load_weights, measure_latency
from services.comparison import ComparisonDocument, Trial, build
from services.folder import Folder, write_csv, write_json
from services.store import Store, TrialRow
from services.study_file import Study
from services.wording import sentence

LATENCY_BATCHES = (1, 256)


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finished study left.

    Args:
        document: The comparison.
        failed: Trials that failed.
    """

    document: ComparisonDocument
    failed: int


def comparable(row: TrialRow) -> Trial:
    """Return a trial of the store as the comparison sees it."""
    return Trial(
        arm=row.arm,
        phase=row.phase,
        number=row.number,
        seed=row.seed,
        state=row.state,
        sample_passes=row.sample_passes,
        planned=row.planned,
        seconds=row.seconds,
        thinking_seconds=row.thinking_seconds,
        score=row.score,
        experiment=row.experiment,
        result=row.result,
    )


def compare(
    study: Study, rows: Sequence[TrialRow], *, latency: Mapping[str, Mapping[str, float]]
) -> ComparisonDocument:
    """Return the comparison of a study from its trials."""
    return build(study, [comparable(row) for row in rows], latency_ms=latency)


def write_comparison(study: Study, store: Store, folder: Folder, splits: Splits) -> ComparisonDocument:
    """Measure the winners' latency and write ``comparison.json`` and ``trials.csv``."""
    rows = store.trials(study.name)
    winners = exported_trials(study, rows)
    latency = {
        arm: {
            f"batch_{batch}": value
            for batch, value in measure_latency(model_of(row, folder, splits), splits.shape, LATENCY_BATCHES).items()
        }
        for arm, row in winners.items()
    }
    document = compare(study, rows, latency=latency)
    write_json(folder.comparison, document.model_dump(mode="json"))
    write_csv(folder.root / "trials.csv", [flat(row) for row in rows])
    return document


def exported_trials(study: Study, rows: Sequence[TrialRow]) -> dict[str, TrialRow]:
    """Return, by arm, the retrained trial with the best validation accuracy, the lowest seed of equals."""
    found: dict[str, TrialRow] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        if row.phase != "retrain" or row.state != "complete" or row.score is None:
            continue
        best = found.get(row.arm)
        if best is None or (best.score or 0.0) < row.score:
            found[row.arm] = row
    return {arm: found[arm] for arm in study.arms if arm in found}


def model_of(row: TrialRow, folder: Folder, splits: Splits) -> torch.nn.Module:
    """Return the trained network of a retrained trial, in eval mode."""
    experiment = Experiment.from_json(row.experiment)
    document = (row.result or {}).get("architecture")
    model = rebuild(experiment, Architecture.from_json(document) if document else None, splits)
    load_weights(model, folder.weights(row.id))
    return model.eval()


def flat(row: TrialRow) -> dict[str, Any]:
    """Return a trial as one row of ``trials.csv``: identity, cost, outcome, then its parameters."""
    result = row.result or {}
    keys = (
        "validation_accuracy",
        "validation_loss",
        "test_accuracy",
        "test_loss",
        "parameters",
        "macs",
        "architecture_hash",
    )
    parameters = (row.params or {}).get("values", {})
    return {
        "trial": row.id,
        "arm": row.arm,
        "phase": row.phase,
        "number": row.number,
        "seed": row.seed,
        "state": row.state,
        "reason": row.reason,
        "sample_passes": row.sample_passes,
        "seconds": round(row.seconds, 3),
        **{key: result.get(key) for key in keys},
        **{f"gap.{key}": value for key, value in (result.get("gap") or {}).items()},
        **{f"param.{key}": value for key, value in parameters.items()},
    }
