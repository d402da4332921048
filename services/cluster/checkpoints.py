"""The checkpoint of a trial: a file that an interrupted run of its experiment continues from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nas_blockout.atomic_files import whole_file
from nas_blockout.experiment import Snapshot


def write_snapshot(snapshot: Snapshot, path: Path, experiment: Mapping[str, Any]) -> None:
    """Write the checkpoint of an experiment; the file is replaced atomically."""
    # Not flushed to disk, since checkpoints are frequent: `read_snapshot` detects a damaged file.
    with whole_file(path, flush=False) as part, part.open("wb") as file:
        torch.save({**snapshot.to_state(), "experiment": _fingerprint(experiment)}, file)


def read_snapshot(path: Path, experiment: Mapping[str, Any]) -> Snapshot | None:
    """Read the checkpoint of an experiment; return None if it is missing, damaged, or of another experiment.

    The file of another experiment may have the same name: files are named by the number of the trial, and a new store
    numbers its trials from the start.
    """
    try:
        state = torch.load(path, weights_only=True)
        return Snapshot.from_state(state) if state["experiment"] == _fingerprint(experiment) else None
    except FileNotFoundError:
        return None
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, UnpicklingError):
        return None  # a damaged file, as after a full disk: start again rather than fail


def _fingerprint(experiment: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()
