"""Checking a bundle that somebody has sent: hashes, and the numbers of its comparison, computed again from its rows.

Nothing is extracted, imported or run, and what is read is limited: the file may be anybody's.
"""

import csv
import hashlib
import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_blockout.statistics import significance
from services.bundle.private_texts import BundleError

SUMS, ROWS, COMPARISON = "SHA256SUMS", "trials.csv", "comparison.json"
MOST_FILES = 20_000
MOST_BYTES = 16 * 2**30  # of all files together, unpacked: bundles with large models
MOST_READ = 256 * 2**20  # of one file that is read, not only hashed
_CHUNK = 2**20
_TOLERANCE = 1e-9
_SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")
Row = Mapping[str, str]
_REQUIRED = (SUMS, ROWS, COMPARISON, "study.yaml", "environment.json", "epochs.csv", "README.md", "report/index.html")


@dataclass(frozen=True, slots=True)
class Checked:
    """What a bundle holds.

    Args:
        study: Name of its study.
        files: How many files were compared with their hashes.
        numbers: How many numbers of the comparison were computed again.
        problems: Everything that does not agree; empty if the bundle is whole and its numbers are those of its rows.
    """

    study: str
    files: int
    numbers: int
    problems: tuple[str, ...]


def check(path: Path) -> Checked:
    """Compare a bundle with its hashes and its comparison with its rows.

    Raises:
        BundleError: It cannot be read, or holds what no bundle does: links, paths that lead out of it, too much.
    """
    study, digests, contents = _read(path)
    problems = [f"{name} is missing" for name in _REQUIRED if name not in digests]
    if problems:
        return Checked(study, len(digests), 0, tuple(problems))
    problems += _wrong_hashes(digests, contents[SUMS])
    try:
        rows = list(csv.DictReader(io.StringIO(contents[ROWS].decode())))
        document = json.loads(contents[COMPARISON])
        found = list(_recomputed(document, rows))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return Checked(study, len(digests), 0, (*problems, f"the comparison cannot be computed again: {reason}"))
    problems += [
        f"{what}: {COMPARISON} has {_shown(told)}, the rows give {_shown(number)}"
        for what, told, number in found
        if not _equal(told, number)
    ]
    return Checked(study, len(digests) - 1, len(found), tuple(problems))


def _read(path: Path) -> tuple[str, dict[str, str], dict[str, bytes]]:
    """Return the name of the study, the hash of every file by its path in the bundle, and the files that are read."""
    digests, contents = dict[str, str](), dict[str, bytes]()
    studies, total = set[str](), 0
    try:
        with tarfile.open(path, "r|gz") as archive:  # as a stream: what a header says of places in it is not followed
            for entry in archive:
                study, name = _parts(entry)
                studies.add(study)
                total += entry.size
                if total > MOST_BYTES or len(digests) >= MOST_FILES:
                    raise BundleError(f"{path} holds more than {MOST_FILES:,} files or {MOST_BYTES:,} bytes")
                if name in digests or len(studies) > 1:
                    raise BundleError(f"{path} is no bundle: {entry.name!r} stands in it twice, or beside the study")
                digests[name], content = _hashed(archive, entry, keep=name in (SUMS, ROWS, COMPARISON))
                contents |= {name: content} if content is not None else {}
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BundleError(f"{path} cannot be read as a bundle: {' '.join(str(error).split())}") from None
    if not studies:
        raise BundleError(f"{path} is empty")
    return studies.pop(), digests, contents


def _parts(entry: tarfile.TarInfo) -> tuple[str, str]:
    """Return the first folder of an entry and the path below it; refuse what is no plain file below one folder."""
    parts = entry.name.split("/")
    plain = entry.isreg() and not entry.issparse()
    if not plain or len(parts) < 2 or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise BundleError(
            f"no bundle holds {entry.name!r}: it is a link or no file, or its path leads out of the study"
        )
    return parts[0], "/".join(parts[1:])


def _hashed(archive: tarfile.TarFile, entry: tarfile.TarInfo, *, keep: bool) -> tuple[str, bytes | None]:
    if keep and entry.size > MOST_READ:
        raise BundleError(f"{entry.name} has {entry.size:,} bytes, at most {MOST_READ:,} are read")
    digest, kept = hashlib.sha256(), bytearray()
    file = archive.extractfile(entry)
    assert file is not None, "a regular file"
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        if keep:
            kept += chunk
    return digest.hexdigest(), bytes(kept) if keep else None


def _wrong_hashes(digests: Mapping[str, str], sums: bytes) -> Iterator[str]:
    told: dict[str, str] = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            yield f"{SUMS} has a line that is no hash: {line[:100]!r}"
            continue
        told[match[2]] = match[1]
    for name in sorted(digests.keys() - {SUMS} | told.keys()):
        if name not in told:
            yield f"{name} has no hash in {SUMS}"
        elif name not in digests:
            yield f"{name} is missing"
        elif told[name] != digests[name]:
            yield f"{name} is not the file that was bundled: its hash differs"


def _recomputed(document: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[tuple[str, Any, Any]]:
    """Yield numbers of a comparison: what each is, what the document says, and what the rows give."""
    arms, metric = document["arms"], str(document.get("metric", "accuracy"))
    overlap = significance.overlap_of_folds(document.get("folds"))
    current = [row for row in rows if row.get("stale") != "True"]
    unknown = sorted({row["arm"] for row in rows} - arms.keys())
    yield "arms that only the rows have", [], unknown
    scores: dict[str, dict[int, float]] = {}
    for name, told in arms.items():
        own = [row for row in current if row["arm"] == name]
        models = {int(row["seed"]): row for row in own if (row["phase"], row["state"]) == ("retrain", "complete")}
        yield from _counts(name, told, own, [row for row in rows if row["arm"] == name and row not in own])
        for key in dict.fromkeys(f"{part}_{kind}" for kind in ("accuracy", metric) for part in ("test", "validation")):
            by_seed = {seed: float(row[key]) for seed, row in models.items()}
            yield from _accuracy(f"{name}, {key}", told[key], by_seed, overlap)
            if key == f"test_{metric}" and by_seed:
                scores[name] = by_seed
        best = max(models, key=lambda seed: (float(models[seed][f"validation_{metric}"]), -seed), default=None)
        yield f"{name}, exported_seed", told["exported_seed"], best
        for key in ("parameters", "macs") if best is not None else ():
            yield f"{name}, {key}", told[key], _whole(models[best][key]) if best is not None else None
    yield from _pairs(document, scores, overlap)


def _counts(
    name: str, told: Mapping[str, Any], own: Sequence[Row], stale: Sequence[Row]
) -> Iterator[tuple[str, Any, Any]]:
    yield f"{name}, trials", told["trials"], len(own)
    for state in ("failed", "pruned"):
        yield f"{name}, {state}", told[state], sum(row["state"] == state for row in own)
    phases = {"search": own, "retrain": own, "stale": stale}
    for phase, trials in phases.items():
        wanted = "retrain" if phase == "stale" else phase
        passes = sum(int(row["sample_passes"]) for row in trials if row["phase"] == wanted)
        said = told["cost"].get(phase, {}).get("sample_passes", 0)
        yield f"{name}, sample passes of {phase}", said, passes


def _accuracy(
    what: str, told: Mapping[str, Any] | None, by_seed: Mapping[int, float], overlap: float
) -> Iterator[tuple[str, Any, Any]]:
    if told is None or not by_seed:
        yield what, told, None if not by_seed else "accuracies"
        return
    summary = significance.summary(dict(sorted(by_seed.items())), bounds=(0, 1), overlap=overlap)
    yield f"{what} by seed", told["per_seed"], {str(seed): value for seed, value in by_seed.items()}
    yield f"{what}, mean", told["mean"], summary.mean
    yield f"{what}, standard deviation", told["std"], summary.std
    yield f"{what}, interval", told["ci95"], summary.ci95


def _pairs(
    document: Mapping[str, Any], scores: Mapping[str, Mapping[int, float]], overlap: float
) -> Iterator[tuple[str, Any, Any]]:
    # Which pairs are tested follows from what the arms spent and are for; their numbers follow from the rows.
    family = [(pair["a"], pair["b"]) for pair in document["pairs"]]
    found = significance.compare(scores, pairs=family, overlap=overlap)
    for told, pair in zip(document["pairs"], found.pairs, strict=True):
        numbers = {
            "difference": pair.test.difference, "ci95": pair.test.ci95, "seeds": pair.test.n, "p": pair.test.p_value,
            "p_permutation": pair.test.p_permutation, "p_holm": pair.p_holm, "smallest_effect": pair.smallest_effect,
            "verdict": pair.verdict,
        }  # fmt: skip
        for key, number in numbers.items():
            yield f"{pair.a} against {pair.b}, {key}", told[key], number
    if document["ranking"] is not None:
        yield "ranking", document["ranking"], list(found.ranking or ())


def _whole(text: str) -> int | None:
    return int(float(text)) if text else None


def _equal(told: Any, number: Any) -> bool:
    """Whether two values are the same but for rounding."""
    if isinstance(told, Mapping) and isinstance(number, Mapping):
        return told.keys() == number.keys() and all(_equal(told[key], number[key]) for key in told)
    if isinstance(told, list | tuple) and isinstance(number, list | tuple):
        return len(told) == len(number) and all(map(_equal, told, number))
    if isinstance(told, int | float) and isinstance(number, int | float) and not isinstance(told, bool):
        return math.isclose(told, number, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(told == number)


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."
