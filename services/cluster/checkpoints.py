"""The checkpoint of a trial: a file that an interrupted run of its experiment continues from, on any device."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nas_blockout.atomic_files import whole_file
from nas_blockout.experiment import Snapshot


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where a trial starts.

    Args:
        snapshot: What it continues from, its tensors on the CPU; None to train from the start.
        notes: What happened on the way that its result should say, one sentence each.
    """

    snapshot: Snapshot | None = None
    notes: tuple[str, ...] = ()


def state_of(
    given: Continuation, experiment: Mapping[str, Any], *, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Return the content of a checkpoint, with references to the tensors of the training.

    Args:
        given: With a snapshot.
        experiment: Whose it is, as plain JSON types.
        device: Where the experiment runs.
    """
    assert given.snapshot is not None
    return {
        **given.snapshot.to_state(),
        "experiment": _fingerprint(experiment),
        "device": torch.device(device).type,
        "notes": list(given.notes),
    }


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write the content of a checkpoint; the file is replaced atomically."""
    # Not flushed to disk, since checkpoints are frequent: `read_checkpoint` detects a damaged file.
    with whole_file(path, flush=False) as part, part.open("wb") as file:
        torch.save(dict(state), file)


def read_checkpoint(path: Path, experiment: Mapping[str, Any], *, device: str | torch.device = "cpu") -> Continuation:
    """Read the checkpoint of an experiment; without a snapshot if it is missing, unreadable, or of another experiment.

    The file of another experiment may have the same name: files are named by the number of the trial, and a new store
    numbers its trials from the start.

    Args:
        path: Of the file.
        experiment: Whose it should be, as plain JSON types.
        device: Where the experiment goes on. The draws of another kind of device than it ran on cannot be continued:
            they begin anew, from a seed that the experiment and the epoch decide.
    """
    try:
        # A device that wrote tensors need not be there where they are read; training moves them to its own.
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["experiment"] != _fingerprint(experiment):
            return Continuation()
        snapshot = Snapshot.from_state(state)
        notes = tuple(str(note) for note in state.get("notes", ()))
        then, now = str(state.get("device", torch.device(device).type)), torch.device(device).type
        if then == now:
            return Continuation(snapshot, notes)
        note = f"a checkpoint of {then} went on on {now}: its draws began anew {_moment(snapshot)}"
        return Continuation(_with_new_draws(snapshot, experiment, device), (*notes, note))
    except FileNotFoundError:
        return Continuation()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, UnpicklingError) as error:
        # As after a full disk or from another version: start again rather than fail.
        reason = " ".join(str(error).split())[:100]
        note = f"trained from the start again: its checkpoint could not be read ({type(error).__name__}: {reason})"
        return Continuation(notes=(note,))


def _with_new_draws(snapshot: Snapshot, experiment: Mapping[str, Any], device: str | torch.device) -> Snapshot:
    progress = snapshot.checkpoint.progress
    moment = f"{len(snapshot.records)} {progress.batches}" if progress else f"{len(snapshot.records)}"
    seed = hashlib.sha256(f"{_fingerprint(experiment)} {moment}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(seed[:6], "big"))
    return replace(snapshot, checkpoint=replace(snapshot.checkpoint, generator=generator.get_state()))


def _moment(snapshot: Snapshot) -> str:
    epochs = len(snapshot.records)
    return f"in epoch {epochs}" if snapshot.checkpoint.progress else f"after epoch {epochs - 1}"


def _fingerprint(experiment: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()
