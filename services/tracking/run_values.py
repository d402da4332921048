"""What MLflow is told of a trial: parameters, tags and metrics, all of them from the store."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeGuard

from nas_blockout.structure.branching import recorded_structure, structure_metrics, summary
from services.store import EpochRow
from services.tracking.study_identity import StudyIdentity
from services.trial_record import RETRAIN, Trial

CURVE_POINTS = 100  # about, for each curve: writing one takes 1/6 ms, and the store has every epoch anyway
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 500
SETTING_CHARACTERS = 4000  # MLflow takes 8,000 in a tag
# Of a study: an extension or the next run may have others. MLflow never changes a parameter, so that they are tags.
CHANGEABLE = ("arms", "budget", "export", "question", "retrain", "workers")
CURVES = {"train_loss": "train/loss", "validation_loss": "val/loss", "validation_accuracy": "val/accuracy"}
_SETTINGS = ("budget", "export", "retrain", "workers")
_SYSTEM = {  # what a training took of its device, and under which of its system metrics MLflow shows it
    "device_bytes": ("system/peak_gpu_memory_megabytes", 1e-6),
    "host_bytes": ("system/peak_process_memory_megabytes", 1e-6),
    "utilization": ("system/gpu_utilization_percentage", 100),
}


def tags_of(trial: Trial, *, identity: StudyIdentity, parent: str) -> dict[str, str]:
    """Return the tags of the run of a trial."""
    tags = {
        "mlflow.parentRunId": parent,
        "nas.trial": str(trial.id),
        **identity.tags,
        "nas.arm": trial.arm,
        "nas.method": str(trial.experiment["method"]["name"]),
        "nas.phase": trial.phase,
        "nas.seed": str(trial.seed),
        "nas.status": trial.state,
        "mlflow.note.content": _note_of(trial),
    }
    architecture = trial.outcome.get("architecture_hash") or trial.architecture_hash
    structure = recorded_structure(trial.outcome)
    method = trial.experiment["method"]
    learned = method["name"] == "blockout" and method.get("mode") != "hard-fixed"
    return {
        **tags,
        **({"nas.branches": summary(structure, learned=learned)[:TAG_CHARACTERS]} if structure else {}),
        **({"nas.architecture": architecture} if architecture else {}),
        **({"nas.reason": trial.reason[:TAG_CHARACTERS]} if trial.reason else {}),
    }


def _note_of(trial: Trial) -> str:
    what = "Retrained model" if trial.phase == RETRAIN else "Search trial"
    ended = {"complete": "", "pruned": "; stopped early", "failed": "; failed"}.get(trial.state, f"; {trial.state}")
    reason = f": {trial.reason[:TAG_CHARACTERS]}" if trial.reason else ""
    return f"{what} {trial.number} of arm `{trial.arm}`, seed {trial.seed}{ended}{reason}."


def begin_of(trial: Trial) -> int:
    """Return when the run of a trial begins, in milliseconds."""
    return milliseconds(trial.started_at or trial.created_at)


def end_of(trial: Trial) -> int:
    """Return when the run of a trial that has ended ends, in milliseconds."""
    return milliseconds(trial.finished_at or trial.created_at)


def description_of(config: Mapping[str, Any], pages: Mapping[str, str]) -> str:
    """Return what a study is about, in Markdown: its question, where its arms are compared, and its arms.

    Args:
        config: The resolved study.
        pages: Addresses of the pages on which arms are compared, by what they show.
    """
    links = " · ".join(f"[{name}]({address})" for name, address in pages.items())
    # In one paragraph, the links first: MLflow shows one line of it until somebody unfolds the rest.
    question = " ".join(filter(None, (f"**Compare** {links}." if links else "", str(config.get("question", "")))))
    rows = [f"- `{name}`: {text}" if text else f"- `{name}`" for name, text in descriptions_of(config).items()]
    return "\n".join([question, *(["", "Arms:", "", *rows] if rows else [])])[:SETTING_CHARACTERS]


def descriptions_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the description of each arm of a study, empty where there is none."""
    return {name: str(arm.get("description") or "") for name, arm in (config.get("arms") or {}).items()}


def settings_tags(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a study that may change, as tags."""
    settings = {key: config[key] for key in _SETTINGS if key in config}
    arms = {"nas.arms": ", ".join(config["arms"])[:SETTING_CHARACTERS]} if config.get("arms") else {}
    return {f"nas.{name}": str(value)[:SETTING_CHARACTERS] for name, value in _leaves(settings, "")} | arms


def outdated(present: Iterable[str], settings: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """Return the tags of settings that a study no longer has, such as a limit that was lifted."""
    prefixes = tuple(f"nas.{key}." for key in _SETTINGS if key in config)
    return [key for key in present if (key.startswith(prefixes) or key == "nas.export") and key not in settings]


def params_of(document: Mapping[str, Any]) -> list[Any]:
    """Return the leaves of a document as MLflow parameters with dotted names, without architectures."""
    from mlflow.entities import Param

    return [Param(name, str(value)[:PARAM_CHARACTERS]) for name, value in _leaves(document, "")]


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    renamed = {"training.learning_rate": "optim.lr", "training.weight_decay": "optim.weight_decay"}
    if isinstance(value, Mapping):
        method = value.get("name") if prefix == "method" else None
        for key, item in value.items():
            if (prefix, key) == ("", "architecture"):
                continue
            place = str(method) if method and key != "name" else prefix
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif value is not None:
        yield renamed.get(prefix, prefix.replace("backbone.", "model.")), value


def metrics_of(trial: Trial, epochs: Sequence[EpochRow]) -> Iterator[Any]:
    """Yield the metrics of a trial: final values first, then the curves at about `CURVE_POINTS` epochs."""
    from mlflow.entities import Metric

    result = trial.result or {}
    accuracies = [row.metrics.get("validation_accuracy") for row in epochs]
    final = {  # first, because MLflow's comparison of runs shows metrics in the order of logging
        "best/val_accuracy": max(filter(is_number, accuracies), default=None),
        "test/accuracy": result.get("test_accuracy"),
        "test/balanced_accuracy": result.get("test_balanced_accuracy"),
        "model/parameters": result.get("parameters"),
        "model/macs": result.get("macs"),
        **{f"gap/{key}": value for key, value in (result.get("gap") or {}).items()},
        "system/images_per_second": trial.images_per_second,
        **{
            name: scale * trial.usage[key] for key, (name, scale) in _SYSTEM.items() if trial.usage.get(key) is not None
        },
        **(structure_metrics(structure) if (structure := recorded_structure(result)) else {}),
    }
    ended = end_of(trial)
    yield from (Metric(key, float(value), ended, 0) for key, value in final.items() if is_number(value))
    began = begin_of(trial)
    for row in thinned(epochs):
        when = began + round(1000 * row.seconds)
        values = {name: row.metrics.get(key) for key, name in CURVES.items()} | dict(row.metrics.get("telemetry") or {})
        values["cost/seconds"], values["cost/sample_passes"] = row.seconds, row.sample_passes
        yield from (Metric(key, value, when, row.epoch) for key, value in values.items() if is_number(value))


def thinned(epochs: Sequence[EpochRow]) -> Sequence[EpochRow]:
    """Return at most about `CURVE_POINTS` epochs at equal distances, the last one included."""
    step = max(1, math.ceil(len(epochs) / CURVE_POINTS))
    return epochs[(len(epochs) - 1) % step :: step]


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number: infinities wreck MLflow's charts."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def milliseconds(moment: datetime) -> int:
    """Return a moment as MLflow has it: milliseconds since 1970."""
    return int(moment.timestamp() * 1000)
