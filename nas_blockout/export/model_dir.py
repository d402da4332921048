"""What the files of a model's folder have in common: how JSON is written, and their hashes."""

import hashlib
import json
from pathlib import Path
from typing import Any

NETWORK = "network.json"  # what builds the network; models that were exported before it was written lack it


def json_text(document: Any) -> str:
    """Return a JSON document as a text for people and programs, in ASCII."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document for people and programs."""
    path.write_text(json_text(document), encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
