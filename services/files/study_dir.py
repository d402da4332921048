"""The folder of a study: paths of its files, and writers of JSON, YAML and CSV that leave no half files."""

import csv
import io
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from nas_blockout import __version__
from nas_blockout.atomic_files import write_text

_RECORDED = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "ray", "optuna", "mlflow", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Folder:
    """Paths of one study below its root.

    Args:
        root: ``runs/<study>``.
    """

    root: Path

    @property
    def scratch(self) -> Path:
        """Files that only a running study needs: checkpoints, Ray's state, weights before export."""
        return self.root / ".work"

    @property
    def comparison(self) -> Path:
        """The comparison as JSON."""
        return self.root / "comparison.json"

    @property
    def report(self) -> Path:
        """The report as one HTML file."""
        return self.root / "report" / "index.html"

    @property
    def models(self) -> Path:
        """Exported models, one folder per arm."""
        return self.root / "models"

    def checkpoint(self, trial: int) -> Path:
        """Checkpoint of a trial."""
        return self.scratch / "checkpoints" / f"{trial}.pt"

    def weights(self, trial: int) -> Path:
        """Weights of a retrained trial."""
        return self.scratch / "weights" / f"{trial}.safetensors"

    def earlier_comparisons(self) -> list[Path]:
        """Return the comparisons that the study had before each extension, the first one first."""
        # Sorted as numbers: the tenth comes after the ninth, not after the first.
        matches = {path: re.fullmatch(r"comparison\.(\d+)\.json", path.name) for path in self.root.glob("comparison.*")}
        numbers = {path: int(match[1]) for path, match in matches.items() if match}
        return sorted(numbers, key=lambda path: numbers[path])

    def archive_comparison(self) -> Path | None:
        """Rename the comparison to ``comparison.<n>.json`` and return that path; None if there is none."""
        if not self.comparison.exists():
            return None
        archived = self.root / f"comparison.{len(self.earlier_comparisons()) + 1}.json"
        return self.comparison.replace(archived)


def write_json(path: Path, document: Any) -> None:
    """Write JSON; raises ValueError on NaN and infinity, which JSON cannot represent."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, document: Any) -> None:
    """Write YAML with keys in their given order."""
    write_text(path, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; columns are all keys, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def environment() -> dict[str, Any]:
    """Return what results may depend on besides the study: machine, Python and package versions."""
    versions: dict[str, str | None] = {}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "nas_blockout": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "processor": _processor(),
        "commit": commit_of(Path(__file__).parents[2]) or _installed_commit(),
        "packages": versions,
    }


def commit_of(root: Path) -> str | None:
    """Return the commit that is checked out in a folder; None where it is no checkout, such as an installed package.

    What has been changed since is not looked for.
    """
    git = root / ".git"
    try:
        if git.is_file():  # of a further working tree
            git = root / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head or None
        common = git / "commondir"
        shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
        reference = head.removeprefix("ref: ")
        if (shared / reference).is_file():
            return (shared / reference).read_text(encoding="utf-8").strip() or None
        packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)


def _processor() -> str | None:
    """Return the name of the processor where the system tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    match = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or None


def _installed_commit() -> str | None:
    """Return the commit of a source that pip has installed from a repository (PEP 610), or None for any other."""
    with suppress(metadata.PackageNotFoundError, ValueError, AttributeError):
        installed = json.loads(metadata.distribution("nas-blockout").read_text("direct_url.json") or "{}")
        commit = installed.get("vcs_info", {}).get("commit_id")
        return commit if isinstance(commit, str) else None
    return None
