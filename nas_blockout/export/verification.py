"""Verification of exported models: hashes first, then every form reloaded in a fresh process without this package."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_blockout.export import subprocess_check
from nas_blockout.export.model_dir import json_text, sha256
from nas_blockout.export.subprocess_check import PREPROCESSING, REFERENCE

SCHEMA_VERSION = 2
MANIFEST = "verification.json"
CARD, README = "card.md", "README.md"  # the card, and what it is called where a model was published
REQUIRED = ("model.pt2", "weights.safetensors", "architecture.json", PREPROCESSING, CARD, REFERENCE)
ALWAYS_COMPARED = ("model.pt2", "weights.safetensors")
MAX_FILE_BYTES = 4 << 30
MAX_MANIFEST_BYTES = 1 << 20
_OWN_HASH, _NO_HASH = "own_sha256", "0" * 64
_RELOAD_SECONDS = 300
_MOST_NAMED = 4
_REMEDY = "export the model again"


class VerificationError(RuntimeError):
    """An exported model does not match its verification; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying an exported model.

    Args:
        ok: Whether every file is the one that was written and every form computes the recorded logits.
        findings: What is wrong, one sentence each; empty if nothing is.
        differences: Largest absolute difference of logits by form and batch size; of the weights file, to the weights
            in ``model.pt2``, under ``tensors``.
        bounds: Largest difference allowed, by form.
    """

    ok: bool
    findings: tuple[str, ...] = ()
    differences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A model to be reloaded: its folder and the SHA-256 of its files."""

    folder: Path
    files: Mapping[str, str]


def verify(folder: Path) -> Verification:
    """Verify an exported model: its files by their hashes, then every form by its logits in a fresh process.

    Nothing whose bytes have changed is loaded, and no pickle ever. Batches of 1, 7 and 256 images are compared with the
    logits in ``reference.safetensors``, within 1e-4 times the largest logit (1e-4 where that is below 1).

    Args:
        folder: Of the model.

    Returns:
        What was found; a folder that is wrong in any way is a finding, not an error.
    """
    return verify_all([folder])[0]


def verify_all(folders: Sequence[Path]) -> list[Verification]:
    """Verify several exported models as `verify` does; all whose files are unchanged share one fresh process."""
    checked = [check_files(folder) for folder in folders]
    jobs = [Job(folder, files) for folder, (files, findings) in zip(folders, checked, strict=True) if not findings]
    answers: list[Mapping[str, Any]] = []
    if jobs:
        with fresh_process() as process:
            for job in jobs:
                submit(job, process)
            answers = collect(jobs, process)
    pending = iter(answers)
    return [Verification(False, tuple(findings)) if findings else judge(next(pending)) for _, findings in checked]


def judge(answer: Mapping[str, Any]) -> Verification:
    """Return what the answer of the fresh process about one model means."""
    findings = [f"{form}: cannot be used: {text}; {_REMEDY}" for form, text in answer.items() if isinstance(text, str)]
    compared = {form: values for form, values in answer.items() if not isinstance(values, str)}
    for form, values in compared.items():
        differences, bound = values["max_abs_difference"].values(), values["bound"]
        wrong = [difference for difference in differences if not difference <= bound]  # so that NaN is wrong
        what = "weights" if form == "weights.safetensors" else "logits"
        findings += [f"{form}: {what} differ by {wrong[0]:.2e}, more than {bound:.0e}; {_REMEDY}"] if wrong else []
    findings += [
        f"{form}: was not compared; {_REMEDY}" for form in ALWAYS_COMPARED if not findings and form not in answer
    ]
    return Verification(
        not findings,
        tuple(findings),
        {form: values["max_abs_difference"] for form, values in compared.items()},
        {form: values["bound"] for form, values in compared.items()},
    )


@contextmanager
def fresh_process() -> Iterator[subprocess.Popen[str]]:
    """Start a process that cannot import this package; it gets ready while the caller does something else."""
    script = Path(subprocess_check.__file__).read_text(encoding="utf-8")
    process = subprocess.Popen(  # noqa: S603  # our own script, run by our own interpreter
        # -I: neither the working directory nor PYTHONPATH, where this package could be found, is on its path
        [sys.executable, "-I", "-W", "ignore", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def submit(job: Job, process: subprocess.Popen[str]) -> None:
    """Tell a process from `fresh_process` to reload a model; it begins while the caller does something else."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died: `collect` finds out
        process.stdin.write(json.dumps({"folder": str(job.folder.absolute()), "files": dict(job.files)}) + "\n")
        process.stdin.flush()


def collect(jobs: Sequence[Job], process: subprocess.Popen[str]) -> list[Mapping[str, Any]]:
    """Return the answer about each model; one that the process dies of is blamed alone, the others get a new one.

    Args:
        jobs: Those submitted to the process, in order.
        process: Is done with afterwards.
    """
    why = ""
    try:
        lines, errors = process.communicate(timeout=_RELOAD_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        lines, errors = process.communicate()
        why = f"it took longer than {_RELOAD_SECONDS} seconds"
    answers: list[Mapping[str, Any]] = [json.loads(line) for line in lines.splitlines()]
    if len(answers) == len(jobs):
        return answers
    why = why or f"the process ended with {process.returncode}: {' '.join(errors.split())[-300:]}"
    answers.append({"reloading": why})
    rest = jobs[len(answers) :]
    if not rest:
        return answers
    with fresh_process() as another:
        for job in rest:
            submit(job, another)
        return answers + collect(rest, another)


def sealed(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as the text of its file, with the SHA-256 of that very text with zeros in the hash's place."""
    text = json_text({**manifest, _OWN_HASH: _NO_HASH})
    return _with_own_hash(text, _NO_HASH, _sha256_of(text))


def check_files(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return the recorded hashes and what is wrong with the files, without loading any but the manifest."""
    if not folder.is_dir():
        return {}, [f"{folder} is no folder of an exported model: name one that holds {MANIFEST}"]
    manifest = folder / MANIFEST
    if not manifest.exists() and (models := _models_in(folder)):
        return {}, [f"it is the folder of several models, not of one: name {' or '.join(map(str, models))}"]
    if manifest.is_symlink() or not manifest.is_file() or manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return {}, [f"{MANIFEST} is missing or no plain file of a reasonable size: {_REMEDY}"]
    try:
        text = manifest.read_bytes().decode()
        recorded = json.loads(text)
        version, hashes, skipped = recorded["schema_version"], dict(recorded["files"]), recorded.get("skipped", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {}, [f"{MANIFEST} cannot be read ({type(error).__name__}: {error}): {_REMEDY}"]
    if version != SCHEMA_VERSION:
        return {}, [f"{MANIFEST} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: {_REMEDY}"]
    # The hash is of the text with zeros in its own place, so put them back before hashing.
    own_hash = str(recorded.get(_OWN_HASH))
    if _sha256_of(_with_own_hash(text, own_hash, _NO_HASH)) != own_hash:
        return {}, [f"{MANIFEST} has been changed since it was written: {_REMEDY}"]
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    listed = hashes.keys()
    findings = [f"{name} is missing: {_REMEDY}" for name in sorted(listed - present)]
    findings += [f"{name} does not belong here: remove it" for name in sorted(present - listed)]
    required = set(REQUIRED if "model.onnx" in skipped else (*REQUIRED, "model.onnx"))
    if README in listed:
        required.discard(CARD)
    findings += [f"{MANIFEST} does not list {name}: {_REMEDY}" for name in sorted(required - listed)]
    for name in sorted(listed & present):
        findings += _check_file(folder / name, hashes[name])
    return hashes, findings


def _models_in(folder: Path) -> list[Path]:
    """Return the folders of the models of a study, at most `_MOST_NAMED`, where one of the study is given."""
    patterns = (f"*/{MANIFEST}", f"models/*/{MANIFEST}")
    return sorted(path.parent for pattern in patterns for path in folder.glob(pattern))[:_MOST_NAMED]


def _with_own_hash(text: str, old: str, new: str) -> str:
    """Return the text of a manifest with another hash of itself, which is its last entry."""
    before, match, after = text.rpartition(f'"{_OWN_HASH}": "{old}"')
    return f'{before}"{_OWN_HASH}": "{new}"{after}' if match else text


def _sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_file(path: Path, recorded: str) -> list[str]:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return [f"{path.name} is no plain file of a reasonable size: {_REMEDY}"]
    if sha256(path) != recorded:
        return [f"{path.name} has been changed since it was written: {_REMEDY}"]
    return []
