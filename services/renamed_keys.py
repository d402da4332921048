"""The one table of keys that were renamed between version 1 and version 2 of study files and of what is recorded.

Study files of version 1 are upgraded when they are read, stored studies and trials once, by a migration of the store.
Nothing else in the project knows the old names. Defaults changed with version 2, too: what version 1 left out is
written down in the upgrade, so that a study of version 1 keeps its meaning.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

# By the kind of mapping in which a key stands: old name -> new name.
RENAMED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "study": {"prefer": "selection"},
        "arm": {
            "like": "extends",
            "purpose": "description",
            "startup": "n_startup_trials",
            "prefer": "selection",
        },
        "selection": {"within": "tolerance"},
        "workers": {"at_once": "max_concurrent_trials"},
        "backbone": {"normalise_logits": "normalize_logits", "mapped_stages": "regularized_stages"},
        "method": {
            "structure_lr": "structure_lr_multiplier",
            "charge": "cost_penalty",
            "charge_target": "cost_target",
            "charge_sides": "cost_penalty_sides",
            "charge_ramp": "cost_warmup",
            "polarisation": "polarization",
            "price": "cost_penalty",
            "pretrain_share": "pretrain_fraction",
            "policy_share": "policy_fraction",
            "policy_learning_rate": "policy_lr_multiplier",
        },
        "derivation": {
            "learn_share": "learn_fraction",
            "learning_rate_scale": "finetune_lr_multiplier",
            "soft_targets": "soft_target_weight",
            "surplus": "trim_by",
            "smallest_group": "min_group_size",
        },
        "params": {"refused": "infeasible", "gave_up": "search_exhausted"},
        "searched": {
            "blockout.charge": "blockout.cost_penalty",
            "blockout.structure_lr": "blockout.structure_lr_multiplier",
        },
        "compared arm": {"purpose": "description", "refused": "infeasible"},
        "compared cost": {"superseded": "stale"},
    }
)

# By kind and new name of the key: values that were renamed.
RENAMED_VALUES: Mapping[tuple[str, str], Mapping[str, str]] = MappingProxyType(
    {
        ("derivation", "placebo"): {"undivided": "unbranched"},
        ("compared arm", "role"): {"rival": "baseline", "control": "ablation"},
    }
)

# What a recorded experiment of version 1 has where it says nothing. Study files say the same with one key, the preset.
_DEFAULTS_OF_BLOCKOUT: Mapping[str, Any] = MappingProxyType(
    {
        "masked": "head",
        "first_probability": 0.5,
        "last_probability": 0.5,
        "logit_noise": 0.0,
        "structure_lr_multiplier": 1.0,
        "cost_penalty": 0.0,
        "cost_penalty_sides": "above",
        "cost_warmup": 0.5,
        "polarization": 0.0,
    }
)
# By method: what makes it that of version 1, where this version has another default or a setting that is new. A
# recorded experiment has, in the place of the preset, its settings one by one.
SETTINGS_OF_VERSION_1: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        "blockout": {"preset": "paper"},
        "blockdrop": {"preset": "paper"},
        "dropout": {"placement": "all"},
        "dropconnect": {"placement": "all", "masks": "batch"},
        "dropblock": {"last_stages": None},
        "spatial_dropout": {"last_stages": None},
    }
)
# Version 1 evaluated with the statistics that training gathers: its trials are compared with others of their kind.
TRAINING_OF_VERSION_1: Mapping[str, str] = MappingProxyType({"evaluation_statistics": "running"})
BACKGROUND_OF_VERSION_1 = "dropped"  # of transparent images, whose hidden colors it showed

# Likewise of blockdrop; recorded experiments hold every setting that there was.
_DEFAULTS_OF_BLOCKDROP: Mapping[str, Any] = MappingProxyType(
    {
        "blocks_per_epoch": 1,
        "finetune_paths": "sampled",
        "policy_widths": [16, 32, 64],
        "policy_pool": 1,
        "seed": 0,
    }
)
_PRESETS_ONE_BY_ONE = MappingProxyType({"blockout": _DEFAULTS_OF_BLOCKOUT, "blockdrop": _DEFAULTS_OF_BLOCKDROP})

# By kind: settings that were added after studies had been stored, each with the value that stands for what was before.
_ADDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "study": {"equivalence_margin": 0.005, "robustness": None, "calibrate": False},
        "data": {
            "background": None,
            "layout": None,
            "min_images_per_class": None,
            "excluded_classes": [],
            "resize_size": None,
            "content": None,
            "group_pattern": None,
            "table": None,
            "path_column": None,
            "label_column": None,
            "group_column": None,
            "split_column": None,
            "folds": None,
            "fold": None,
            "options": {},
            "augment_options": {},
        },
        "method": {
            "target_macs": None,
            "last_stages": None,
            "mask_values": "share",
            "magnitude_spread": 0.0,
            "start_at": "probabilities",
            "disjointness": 0.0,
            "depth_exponent": 1.0,
        },
        "training": {
            "precision": "float32",
            "compile": False,
            "memory_format": "contiguous",
            "schedule_milestones": [0.5, 0.75],
            "schedule_factor": 0.1,
            "schedule_rise": 0.3,
            "no_decay": ["norms-and-biases"],
            "label_smoothing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "class_weights": "none",
            "sampling": "shuffled",
            "accumulation": 1,
            "gradient_clip": None,
            "ema": None,
            "loss": "cross_entropy",
            "loss_options": {},
        },
        "derivation": {"clean_up": True},
    }
)
_UNDECIDING = frozenset({"workers", "question", "export"})  # keys of a study that influence no result

# By kind and new name of the key: the kind of the mapping (or of the mappings in the list) that stands there.
INSIDE: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "study": {
            "data": "data",
            "selection": "selection",
            "training": "training",
            "workers": "workers",
            "backbone": "backbone",
            "arms": "arms",
        },
        "arms": {"*": "arm"},
        "arm": {
            "selection": "selection",
            "training": "training",
            "backbone": "backbone",
            "method": "method",
            "distillation": "derivation",
            "pruning": "derivation",
            "confusion": "derivation",
            "experiment": "experiment",
        },
        "experiment": {
            "data": "data",
            "training": "training",
            "backbone": "backbone",
            "method": "method",
            "distillation": "derivation",
            "pruning": "derivation",
            "confusion": "derivation",
        },
        "comparison": {"arms": "compared arms"},
        "compared arms": {"*": "compared arm"},
        "compared arm": {"settings": "experiment", "cost": "compared cost"},
        "params": {"values": "searched", "distributions": "searched", "infeasible": "params"},
    }
)


def upgraded_study(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study of version 1, as it was written or resolved, in version 2; any other document as it is."""
    if document.get("schema_version") != 1 or isinstance(document["schema_version"], bool):
        return dict(document)
    return {**_renamed(document, "study"), "schema_version": 2}


def upgraded_experiment(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded experiment with the names of version 2; one that has them already stays as it is."""
    return _renamed(document, "experiment")


def upgraded_params(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a search chose for a trial, as it is recorded, with the names of version 2."""
    return _renamed(document, "params")


def upgraded_comparison(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``comparison.json`` of version 1 in version 2; any other document as it is."""
    if document.get("schema_version") != 1:
        return dict(document)
    return {**_renamed(document, "comparison"), "schema_version": 2}


def study_hash(document: Mapping[str, Any]) -> str:
    """Return the hash of all settings of a resolved study that influence results, 16 hexadecimal digits.

    Settings that were added later count only where they change something, so that a study that was stored before keeps
    its hash: by it a repeated request and an earlier version of an extended study are recognized.
    """
    hashed = _without_added({key: value for key, value in document.items() if key not in _UNDECIDING}, "study")
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def _without_added(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    added, inside = _ADDED.get(kind, {}), INSIDE.get(kind, {})
    kept = {key: value for key, value in document.items() if key not in added or value != added[key]}
    return {
        key: _without_added(value, within)
        if isinstance(value, Mapping) and (within := inside.get(key, inside.get("*"))) is not None
        else value
        for key, value in kept.items()
    }


def new_name(key: str) -> str | None:
    """Return what a key of version 1 is called now, wherever it stands, or None if it was not renamed."""
    return next((names[key] for names in RENAMED.values() if key in names), None)


def renamed_value(value: str) -> str | None:
    """Return what a value of version 1 is called now, wherever it stands, or None if it was not renamed."""
    return next((names[value] for names in RENAMED_VALUES.values() if value in names), None)


def _renamed(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    names, inside = RENAMED.get(kind, {}), INSIDE.get(kind, {})
    upgraded: dict[str, Any] = {}
    for key, value in document.items():
        # A document with both names keeps the old one, which is then refused like any key that does not exist.
        name = key if names.get(key) in document else names.get(key, key)
        within = inside.get(name, inside.get("*"))
        if isinstance(value, Mapping) and within is not None:
            value = _renamed(value, within)
        elif isinstance(value, list) and within is not None:
            value = [_renamed(item, within) if isinstance(item, Mapping) else item for item in value]
        elif isinstance(value, str):
            value = RENAMED_VALUES.get((kind, name), {}).get(value, value)
        upgraded[name] = value
    return _with_defaults(upgraded, kind)


def _with_defaults(upgraded: dict[str, Any], kind: str) -> dict[str, Any]:
    """Write down what version 1 had by default, where version 2 has another default."""
    # A resolved study has the settings of its arms in their experiments and nowhere else.
    written = kind == "study" and not any(
        isinstance(arm, Mapping) and "experiment" in arm for arm in _values(upgraded.get("arms"))
    )
    # A recorded experiment always has its training; what has none is no experiment of version 1.
    if written or (kind == "experiment" and "training" in upgraded):
        training = upgraded.get("training", {})
        if isinstance(training, Mapping):
            upgraded = {**upgraded, "training": {**TRAINING_OF_VERSION_1, **training}}
    if kind == "data" and upgraded.get("name") == "imagefolder":
        return {"background": BACKGROUND_OF_VERSION_1, **upgraded}
    method = upgraded.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if not isinstance(method, Mapping) or not isinstance(name, str) or name not in SETTINGS_OF_VERSION_1:
        return upgraded
    if kind == "arm":
        return {**upgraded, "method": {"name": name, **SETTINGS_OF_VERSION_1[name], **method}}
    if kind == "experiment":
        settings = _PRESETS_ONE_BY_ONE.get(name, SETTINGS_OF_VERSION_1[name])
        return _as_blockout_was({**upgraded, "method": {"name": name, **settings, **method}})
    return upgraded


def _as_blockout_was(experiment: dict[str, Any]) -> dict[str, Any]:
    """Write down what version 1 did around the method blockout; other experiments stay as they are."""
    if experiment["method"]["name"] == "blockout":
        if isinstance(backbone := experiment.get("backbone"), Mapping) and backbone.get("name") == "inception":
            experiment["method"]["masked"] = "head"  # version 1 took "all" for it, which its convolutions cannot have
        if isinstance(distillation := experiment.get("distillation"), Mapping):
            experiment["distillation"] = {"trim_by": "probability", **distillation}
    return experiment


def _values(mapping: Any) -> Iterable[Any]:
    return mapping.values() if isinstance(mapping, Mapping) else ()
