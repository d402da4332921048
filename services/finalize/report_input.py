"""What the report of a study shows, collected from its folder, the store and the data."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nas_blockout.data import Splits
from services.analysis.comparison import ComparisonDocument
from services.analysis.searches.importance import importances
from services.budget.accounting import current
from services.files.study_dir import Folder
from services.report import ReportView, write
from services.report.album import Album
from services.store import Store
from services.study_config.resolved_study import Study
from services.trial_record import SEARCH, Trial


def write_report(
    study: Study,
    store: Store,
    trials: Sequence[Trial],
    document: ComparisonDocument,
    splits: Splits,
    folder: Folder,
    *,
    links: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``report/index.html`` and its figures, with links to pages of MLflow by what they show."""
    shown = current(trials)
    view = ReportView(
        comparison=document.model_dump(mode="json"),
        study=study.to_json(),
        environment=json.loads((folder.root / "environment.json").read_text()),
        trials=shown,
        epochs={trial.key: _epochs(store, trial) for trial in shown if trial.is_model},  # no others are drawn
        class_names=splits.class_names,
        hierarchy=splits.hierarchy or {},
        importance=_importance(study, trials),
        album=Album(splits),
        links=links,
    )
    write(view, folder)


def _epochs(store: Store, trial: Trial) -> list[Mapping[str, Any]]:
    return [
        {
            "epoch": epoch.epoch,
            "stage": epoch.stage,
            "sample_passes": epoch.sample_passes,
            "seconds": epoch.seconds,
            **epoch.metrics,
        }
        for epoch in store.epochs(trial.id)
    ]


def _importance(study: Study, trials: Sequence[Trial]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return, by arm and searched parameter, its share of the importance and the largest share by chance."""
    searched: dict[str, list[Trial]] = {arm: [] for arm in study.arms}
    for trial in sorted(trials, key=lambda trial: trial.number):
        is_scored = trial.phase == SEARCH and trial.state == "complete" and trial.score is not None
        if is_scored and trial.arm in searched:
            searched[trial.arm].append(trial)
    return {
        arm: {name: (importance.share, importance.by_chance) for name, importance in importances(complete).items()}
        for arm, complete in searched.items()
    }
