"""What is published of an exported model: its verified files, with the card as README.md, named by a new manifest."""

import hashlib
import json
import re
import shutil
from pathlib import Path

from nas_blockout.export import MANIFEST, VerificationError, verify
from nas_blockout.export.card_metadata import with_license
from nas_blockout.export.verification import CARD, README, sealed

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def write_published(model: Path, target: Path, *, license: str | None = None) -> None:
    """Verify an exported model, and write what is published of it to an empty folder.

    No file is left out or added but the card, which the hub wants as README.md: no exported form holds a pickle, which
    the verification has seen to. `verify`, `predict` and `load_model` take the folder as they take the model's own.

    Args:
        model: Folder of an exported model, or of one that was published.
        target: An empty folder.
        license: As the hub writes it, such as ``apache-2.0``; None to name none, or that which is named already.

    Raises:
        VerificationError: The model is not what was exported; nothing is written.
        ValueError: The license is none that the hub could know, or the card is one of an earlier release.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"--license must be an identifier of the hub, such as apache-2.0, mit or cc-by-4.0, got {license!r}"
        )
    found = verify(model)
    if not found.ok:
        raise VerificationError(f"{model}: {'; '.join(found.findings)}")
    manifest = json.loads((model / MANIFEST).read_text(encoding="utf-8"))
    hashes: dict[str, str] = dict(manifest["files"])
    source = next(name for name in (CARD, README) if name in hashes)
    card = (model / source).read_text(encoding="utf-8")
    if not card.startswith("---\n"):
        raise ValueError(f"{model / source} has no front matter, as cards of earlier releases: export the model again")
    for name in hashes.keys() - {source}:
        shutil.copyfile(model / name, target / name)
    (target / README).write_text(card if license is None else with_license(card, license), encoding="utf-8")
    del hashes[source]
    hashes[README] = hashlib.sha256((target / README).read_bytes()).hexdigest()
    changed = [name for name in hashes if hashlib.sha256((target / name).read_bytes()).hexdigest() != hashes[name]]
    if changed:
        raise VerificationError(f"{model}: {', '.join(sorted(changed))} changed while it was copied: push it again")
    del manifest["own_sha256"]
    (target / MANIFEST).write_text(sealed({**manifest, "files": dict(sorted(hashes.items()))}), encoding="utf-8")
