"""The prepared views of an experiment, and the addresses of the pages on which arms are compared.

MLflow keeps a view that somebody saved as a tag of the experiment, ``mlflow.sharedViewState.<id>``: a JSON object with
the name under which the menu *Views* lists it, the moments of its creation and last change, and its state, which is
JSON as well, plain or compressed. A page opens with it if its address has ``viewStateShareKey=<id>``. The form has no
version and no documentation: it is what the pages of MLflow 3.17 read.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

TAG = "mlflow.sharedViewState."
ARMS, RANKING, RETRAINED = "nas-arms", "nas-ranking", "nas-retrained"
_MODE = "workflowType=machine_learning"  # else a browser that has never chosen opens the pages for language models
_WIDE, _NARROW = 420, 108  # pixels
_SECTION = "nas-comparison"
_NUMBERS = ("test/accuracy", "best/val_accuracy", "model/macs", "model/parameters")
_COST = ("arm/sample_passes", "arm/seconds")
_CURVES = ("val/accuracy", "train/loss")


def pages_of(experiment: str) -> dict[str, str]:
    """Return the addresses of the prepared pages of an experiment by what they show, relative to that of MLflow."""
    runs = f"#/experiments/{experiment}/runs?{_MODE}&viewStateShareKey="
    return {
        "arms": f"{runs}{ARMS}",
        "charts": f"{runs}{RANKING}&compareRunsMode=CHART",
        "retrained models": f"{runs}{RETRAINED}",
    }


def address_of_comparison(experiment: str, runs: list[str]) -> str:
    """Return the address of MLflow's page that compares runs, relative to that of MLflow."""
    # Its page finds the runs only where they come first.
    return f"#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}&{_MODE}"


def write_views(client: Any, experiment: str, present: Mapping[str, str], *, began: int) -> None:
    """Give an experiment its prepared views; one that somebody has changed is left as it is.

    Args:
        client: Of MLflow.
        experiment: ID of the experiment.
        present: Its tags.
        began: When the study was created, in milliseconds: the date of the views.
    """
    for name, (title, state) in _views().items():
        value = json.dumps({"name": title, "createdAt": began, "updatedAt": began, "state": json.dumps(state)})
        if present.get(TAG + name) != value and not _was_changed(present.get(TAG + name)):
            client.set_experiment_tag(experiment, TAG + name, value)


def _was_changed(value: str | None) -> bool:
    """Whether a view was saved again in MLflow, which then dates its change."""
    try:
        view = json.loads(value or "{}")
    except ValueError:
        return False
    return isinstance(view, dict) and view.get("updatedAt") != view.get("createdAt")


def _views() -> dict[str, tuple[str, dict[str, Any]]]:
    arms = [*map(_metric, _NUMBERS), *map(_metric, _COST), _tag("nas.verdict")]
    # In the order of time, and only so, MLflow puts trials below their arms.
    order = {"orderByKey": "attributes.start_time", "orderByAsc": True}
    best = {"orderByKey": "metrics.`test/accuracy`", "orderByAsc": False}
    trained = {"orderByKey": "metrics.`best/val_accuracy`", "orderByAsc": False}
    columns = [_tag("nas.arm"), _tag("nas.seed"), *map(_metric, _NUMBERS), _tag("nas.branches")]
    return {
        ARMS: ("Arms and their trials", _state(order, arms)),
        RANKING: ("Arms by test accuracy", _state({**best, "searchFilter": _of_phase("arm")}, arms)),
        RETRAINED: ("Retrained models", _state({**trained, "searchFilter": _of_phase("retrain")}, columns)),
    }


def _state(facets: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    return {
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        **facets,
        "selectedColumns": columns,
        "columnOrder": columns,  # else in the order of the alphabet, test accuracy out of sight
        "columnWidths": {column: _WIDE if column == _tag("nas.verdict") else _NARROW for column in columns},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunSections": [
            {"uuid": _SECTION, "name": "Comparison", "display": True, "isReordered": True, "deleted": False}
        ],
        "compareRunCharts": [
            _chart("BAR", "test/accuracy"),
            *(_chart("LINE", metric) for metric in _CURVES),
            _chart("BAR", "best/val_accuracy"),
            _scatter("model/macs", "test/accuracy"),
            _scatter("arm/seconds", "test/accuracy"),
        ],
        "isAccordionReordered": True,
    }


def _chart(kind: str, metric: str) -> dict[str, Any]:
    line = {"selectedMetricKeys": [metric]} if kind == "LINE" else {}
    return {**_card(kind, f"{kind}-{metric}"), "metricKey": metric, "displayName": metric, **line}


def _scatter(across: str, up: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": across, "type": "METRIC"}, "yaxis": {"key": up, "type": "METRIC"}}
    return {**_card("SCATTER", f"{across}-{up}"), "chartName": f"{up} against {across}", **axes}


def _card(kind: str, name: str) -> dict[str, Any]:
    place = {"uuid": f"nas-{name}", "metricSectionId": _SECTION}
    return {**place, "type": kind, "runsCountToCompare": 20, "deleted": False, "isGenerated": False}


def _of_phase(phase: str) -> str:
    return f"tags.`nas.phase` = '{phase}'"


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _tag(name: str) -> str:
    return f"tags.`{name}`"
