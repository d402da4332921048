"""Writing a bundle: the same study on the same machine gives the same bytes, whole or not at all."""

import csv
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nas_blockout import __version__
from nas_blockout.atomic_files import whole_file
from services.bundle.checking import COMPARISON, ROWS, SUMS
from services.bundle.private_texts import TEXTS, BundleError, Privacy
from services.files.study_dir import Folder
from services.settings import Settings
from services.store import Store

STUDY, EPOCHS = "study.yaml", "epochs.csv"
ENVIRONMENT, CONSTRAINTS, README = "environment.json", "constraints.txt", "README.md"
REPORT, MODELS = "report", "models"


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle that was written.

    Args:
        path: Of the file.
        files: How many files are in it.
        paths: How many paths of the user were made relative, by file.
    """

    path: Path
    files: int
    paths: Mapping[str, int]


def pack(settings: Settings, name: str, output: Path, *, models: bool, home: Path) -> Packed:
    """Write the bundle of a finished study.

    Args:
        settings: Of the installation.
        name: Of the study.
        output: The file, which is replaced if it is there.
        models: Whether the exported models go in.
        home: Of the user, whose paths stay out of it.

    Raises:
        NotFound: There is no such study.
        BundleError: It has not finished, a file of it is missing, or one that may not be changed names a private path.
    """
    folder = Folder(settings.folder(name))
    with Store.open(settings.store_url) as store:
        store.study(name)  # raises NotFound for an unknown one
        if not folder.comparison.is_file():
            raise BundleError(f"study {name!r} has not finished here; `nas-blockout run {name}` goes on with it")
        epochs = _epochs(store, name)
    privacy = Privacy.of(settings, home)
    files, changed = dict[str, bytes](), dict[str, int]()
    for path, data in [*_of_study(folder), (EPOCHS, epochs)]:
        files[path], count = privacy.cleaned(path, data)
        changed |= {path: count} if count else {}
    files[CONSTRAINTS] = _constraints(json.loads(files[ENVIRONMENT])).encode()
    large = dict(_models(folder, privacy)) if models else {}
    files[README] = _readme(name, json.loads(files[ENVIRONMENT]), files, changed, has_models=bool(large)).encode()
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    sums |= {path: _digest(source) for path, source in large.items()}
    files[SUMS] = "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items())).encode()
    _write(output, name, {**files, **large})
    return Packed(output, len(files) + len(large), changed)


def _of_study(folder: Folder) -> Iterator[tuple[str, bytes]]:
    for name in (STUDY, ENVIRONMENT, ROWS, COMPARISON):
        yield name, _content(folder.root / name)
    for path in folder.earlier_comparisons():
        yield path.name, _content(path)
    report = folder.report.parent
    yield f"{REPORT}/{folder.report.name}", _content(folder.report)
    for path in sorted(report.rglob("*")):
        if path.is_file() and not path.is_symlink() and path != folder.report and not path.name.startswith("."):
            yield f"{REPORT}/{path.relative_to(report).as_posix()}", _content(path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"there is no {path.name} in {path.parent}; was it deleted? Run the study again") from None


def _models(folder: Folder, privacy: Privacy) -> Iterator[tuple[str, Path]]:
    """Yield the files of the exported models; they are verified by their hashes, so nothing in them is changed."""
    for path in sorted(folder.models.rglob("*")):
        if not path.is_file() or path.is_symlink() or path.name.startswith("."):
            continue
        name = f"{MODELS}/{path.relative_to(folder.models).as_posix()}"
        if path.suffix in TEXTS and privacy.cleaned(name, path.read_bytes())[1]:
            raise BundleError(f"{name} names a folder of yours, and a model is not changed; bundle without --models")
        yield name, path


def _epochs(store: Store, name: str) -> bytes:
    """Return the epochs of all trials as CSV."""
    rows = [
        {
            "trial": trial.id, "arm": trial.arm, "phase": trial.phase, "number": trial.number, "seed": trial.seed,
            "epoch": epoch.epoch, "stage": epoch.stage, "sample_passes": epoch.sample_passes,
            "seconds": round(epoch.seconds, 3),
            **{key: value for key, value in epoch.metrics.items() if not isinstance(value, Mapping | list)},
        }
        for trial in store.trials(name)
        for epoch in store.epochs(trial.id)
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _constraints(environment: Mapping[str, Any]) -> str:
    """Return the packages as constraints of pip: those that the study recorded, and what else is installed."""
    recorded = {name: version for name, version in environment.get("packages", {}).items() if version}
    known = {_canonical(name) for name in recorded} | {"nas-blockout"}
    others = {_canonical(found.name): found.version for found in metadata.distributions() if found.name}
    lines = [f"# Python {environment.get('python')}; recorded when the study was run:", *_pinned(recorded)]
    lines += ["# installed when the bundle was made:", *_pinned({k: v for k, v in others.items() if k not in known})]
    return "\n".join(lines) + "\n"


def _pinned(versions: Mapping[str, str]) -> list[str]:
    # Without what stands behind a plus: an index has no 2.13.0+cpu under the name of 2.13.0.
    return sorted(f"{name}=={version.partition('+')[0]}" for name, version in versions.items())


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _readme(
    name: str,
    environment: Mapping[str, Any],
    files: Mapping[str, bytes],
    changed: Mapping[str, int],
    *,
    has_models: bool,
) -> str:
    comparison = json.loads(files[COMPARISON])
    usages = [arm.get("usage") or {} for arm in comparison["arms"].values()]
    devices = sorted({device for usage in usages for device in usage.get("devices", ())})
    commit = environment.get("commit")
    facts = {
        "nas-blockout": str(environment.get("nas_blockout"))
        + (f", commit {commit}" if commit else ", no commit known"),
        "bundled with": __version__,
        "Python": environment.get("python"),
        "machine": f"{environment.get('system')}, {environment.get('machine')}, {environment.get('processors')} cores"
        + (f", {environment['processor']}" if environment.get("processor") else ""),
        "trained on": ", ".join(devices) or "not recorded",
    }
    contents = {
        STUDY: "the study with every setting and seed",
        ROWS: "a row for every trial, failed ones too",
        EPOCHS: "a row for every epoch of every trial",
        COMPARISON: "accuracies, differences, verdict",
        f"{REPORT}/index.html": "the report; tables as CSV and LaTeX, figures as SVG and PDF beside it",
        ENVIRONMENT: "machine and versions",
        CONSTRAINTS: "the packages, for pip",
        **({f"{MODELS}/": "the exported models"} if has_models else {}),
        SUMS: "hashes of all files",
    }
    rerun = f"NAS_BLOCKOUT_HOME=$PWD/again nas-blockout run {STUDY}"
    lines = [
        f"# Study {name}",
        *(f"- {label}: {text}" for label, text in facts.items()),
        "## Run it again",
        f"In this folder:\n\n```sh\n{rerun}\n```",
        f"For the same packages, `pip install` takes `--constraint {CONSTRAINTS}`. On the same kind of processor with "
        "the same packages it repeats every accuracy; other processors and other versions round differently.",
        "## Check it",
        "`nas-blockout bundle --check FILE.tar.gz` compares the hashes and computes the numbers of "
        f"{COMPARISON} again from {ROWS}; without nas-blockout, `sha256sum --check {SUMS}` compares the hashes.",
        "## What is in it",
        *(f"- `{path}`: {text}" for path, text in contents.items()),
        "## What is not in it",
        "No environment variables, no tokens, no data. " + _told_paths(changed),
    ]
    return "\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n"


def _told_paths(changed: Mapping[str, int]) -> str:
    if not changed:
        return "No file named a folder of the user who made it."
    named = ", ".join(f"`{path}` ({count})" for path, count in sorted(changed.items()))
    return (
        f"Paths in folders of the user who made it were made relative: {named}. If the study reads such a folder or "
        "file, put yours there, below the folder from which you run it."
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(output: Path, name: str, files: Mapping[str, bytes | Path]) -> None:
    with (
        whole_file(output) as part,
        part.open("wb") as raw,
        # Neither the name nor the time is in the head of the file: they would make other bytes of the same study.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(files):
            _add(archive, f"{name}/{path}", files[path])


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    if isinstance(content, bytes):
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    with content.open("rb") as file:
        entry.size = content.stat().st_size
        archive.addfile(entry, file)
