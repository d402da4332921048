"""The files of a study that its run in MLflow has as artifacts."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

FILES = ("comparison.json", "study.yaml", "environment.json", "trials.csv")


def files_to_send(folder: Path) -> dict[Path, str]:
    """Return the files of a study to upload, each with its folder in MLflow."""
    report = folder / "report"
    files = {folder / name: "" for name in FILES} | {report / "index.html": "report"}
    for folder_beside, endings in (("figures", ("*.svg", "*.pdf")), ("tables", ("*.csv", "*.tex"))):
        found = sorted(path for ending in endings for path in (report / folder_beside).glob(ending))
        files |= dict.fromkeys(found, folder_beside)
    return {path: place for path, place in files.items() if path.is_file()}


def digest_of(files: Mapping[Path, str]) -> str:
    """Return a hash of the names and contents of all files."""
    digest = hashlib.sha256()
    for path, place in files.items():
        digest.update(f"{place}/{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()};".encode())
    return digest.hexdigest()[:16]
