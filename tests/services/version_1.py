"""The home that a release with version 1 of everything left, and what that release made of it.

Whatever is called otherwise since stands in the tables below, and nowhere else in the tests of version 1.
"""

import json
import math
import shutil
import sqlite3
import tarfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from services.study_config.yaml_reader import bundled
from tests.fixtures.version_1.make import machine
from tests.services.program import Ended, here

FOLDER = Path(__file__).parents[1] / "fixtures" / "version_1"
AGAIN = ("retrain.seeds=[0, 1, 2, 3]", "budget.sample_passes=4200", "export=[]")  # what is exported decides no number
SOME_FAILED = 4
KEYS: Mapping[str, str] = {  # of JSON, of columns and of search parameters: as version 1 has it, and as it is now
    "charge": "cost_penalty",
    "charge_ramp": "cost_warmup",
    "charge_sides": "cost_penalty_sides",
    "charge_target": "cost_target",
    "learn_share": "learn_fraction",
    "learning_rate_scale": "finetune_lr_multiplier",
    "mapped_stages": "regularized_stages",
    "normalise_logits": "normalize_logits",
    "polarisation": "polarization",
    "policy_learning_rate": "policy_lr_multiplier",
    "policy_share": "policy_fraction",
    "pretrain_share": "pretrain_fraction",
    "price": "cost_penalty",
    "refused": "infeasible",
    "smallest_group": "min_group_size",
    "soft_targets": "soft_target_weight",
    "structure_lr": "structure_lr_multiplier",
    "superseded": "stale",
    "surplus": "trim_by",
}
VALUES: Mapping[str, Mapping[str, str]] = {  # by the new name of their key
    "placebo": {"undivided": "unbranched"},
    "role": {"control": "ablation", "rival": "baseline"},
}
# Settings that the bundled studies have given up: methods that stood everywhere stand where their papers have them. By
# method: the setting, what version 1 is read as, and what the bundled studies have.
PLACES: Mapping[str, tuple[str, Any, Any]] = {
    "dropout": ("placement", "all", "hidden"),
    "dropblock": ("last_stages", None, 2),
    "spatial_dropout": ("last_stages", None, 1),
}
_MADE_IN = "/tmp/v1-home"  # where the archive was made
_PLACES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
_UNREPEATED = ("seconds", "latency", "created_at", "finished_at", "bundled")  # clocks, and the release
_WORDS = frozenset({"reason", "verdict", "purpose", "schema_version"})  # for people, in any words; and the version


def in_version_2(name: str) -> Path:
    """Return the bundled study of version 2 with the content of one of version 1: today's, or one kept."""
    kept = FOLDER / "version_2_studies" / f"{name}.yaml"
    return kept if kept.is_file() else Path(bundled()[name])


def unpack(folder: Path) -> Path:
    """Unpack the home into a folder, which is made if need be, as if it had been made there; return its path."""
    with tarfile.open(FOLDER / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    home = folder / "home"
    with closing(sqlite3.connect(home / "runs" / "mlflow.db")) as database:  # MLflow knows absolute places alone
        for table, column in _PLACES.items():
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '{_MADE_IN}', '{home}')")
        database.commit()
    return home


def copied(home: Path, folder: Path) -> Path:
    """Return a copy of a home that a test may change; without MLflow, whose places would be those of the first."""
    return Path(shutil.copytree(home, folder / "home", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts")))


def call(home: Path, *words: object, codes: tuple[int, ...] = (0,), tracking: bool = False, uri: str = "none") -> Ended:
    """Run a command in a home, with MLflow at a URI or, if `tracking`, its own."""
    variables = {} if tracking else {"NAS_BLOCKOUT_TRACKING_URI": uri}
    ended = here(*words, NAS_BLOCKOUT_HOME=str(home), **variables)
    assert ended.code in codes, ended.err
    return ended


def expected(name: str) -> Any:
    """Return what version 1 made of the home, in today's words."""
    return _renamed(json.loads((FOLDER / "expected" / f"{name}.json").read_text(encoding="utf-8")))


def trained_alike() -> bool:
    """Whether trainings give the same numbers here as where the expected ones were recorded."""
    recorded = json.loads((FOLDER / "expected" / "machine.json").read_text(encoding="utf-8"))
    return recorded == machine()


def missing(expected: Any, found: Any, where: str = "") -> list[str]:
    """Return what of an expected document is not found, and where; what is found beyond it may be there.

    Numbers may differ by their last digits, and be written as text, as in a table of CSV.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return [f"{where}: no mapping, but {found!r}"]
        return [each for key in expected for each in missing(expected[key], found.get(key), f"{where}.{key}")]
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return [f"{where}: {expected!r} expected, found {found!r}"]
        return [each for at, one in enumerate(expected) for each in missing(one, found[at], f"{where}[{at}]")]
    return [] if _equal(expected, found) else [f"{where}: {expected!r} expected, found {found!r}"]


def by_trial(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return trials, as `show` or ``trials.csv`` has them, by what is their name."""
    return {f"{row['arm']}/{row['phase']}/{row['number']}": row for row in rows}


def _renamed(document: Any, key: str = "") -> Any:
    if isinstance(document, Mapping):
        kept = {name: value for name, value in document.items() if name not in _WORDS and not _is_unrepeated(name)}
        return {_key(name): _renamed(value, _key(name)) for name, value in kept.items()}
    if isinstance(document, list):
        return [_renamed(value) for value in document]
    return VALUES.get(key, {}).get(document, document) if isinstance(document, str) else document


def _key(key: str) -> str:
    """Return a key in today's words; columns and search parameters are renamed part by part."""
    return ".".join(KEYS.get(part, part) for part in KEYS.get(key, key).split("."))


def _is_unrepeated(key: str) -> bool:
    return any(word in key for word in _UNREPEATED)


def _equal(expected: Any, found: Any) -> bool:
    one, other = _number(expected), _number(found)
    if one is None or other is None:
        return bool(expected == found)
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
