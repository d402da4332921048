"""The folder of a study on shared storage: its own, whatever other stores keep there under the same name.

Each study leaves a file with its UUID in `.owners/` of its folder. Whoever finds another's there takes a folder of its
own. Of two that come at the same moment at least one finds the other's, so that storage need not offer locks.
"""

from collections.abc import Callable
from typing import Any

import fsspec

from services.files.remote import ArtifactError, explained, remove_folder
from services.settings import Settings
from services.store import NotFound, Store, StudyRow

TARGET = "storage"
OWNERS = ".owners"
_SHORT_CHARACTERS = 8


def shared_place(settings: Settings, store: Store, study: str) -> str | None:
    """Return the URL of the folder of a study on shared storage.

    Args:
        settings: Of the installation.
        store: Holds the study, and knows the folder that it took.
        study: Name of the study.

    Returns:
        None if there is no shared storage, or if the study has nothing there yet.

    Raises:
        StoreError: The store cannot be read.
    """
    if settings.artifacts is None:
        return None
    try:
        if (recorded := _recorded(settings, store, study)) is not None:
            return recorded
        # Studies of releases that recorded no folder have the one with their name.
        return f"{settings.artifacts}/{study}" if store.spent(study) else None
    except NotFound:
        return None


def claim_place(settings: Settings, store: Store, row: StudyRow, *, log: Callable[[str], None]) -> None:
    """Take a folder on shared storage for a study, unless it has one; only the driver of the study does so.

    Args:
        settings: Of the installation.
        store: Records the folder.
        row: The study.
        log: Called with what its user should know.

    Raises:
        ArtifactError: Shared storage cannot be reached, or a study with trials has the folder of another store's study.
    """
    if settings.artifacts is None or _recorded(settings, store, row.name) is not None:
        return
    plain = f"{settings.artifacts}/{row.name}"
    has_trials = bool(store.spent(row.name))
    url = plain
    if not _is_free(plain, row.uuid, adopts=has_trials):
        if has_trials:
            raise ArtifactError(
                f"{plain} holds the files of a study of the same name of another store, and perhaps those of this one: "
                "set NAS_BLOCKOUT_ARTIFACTS to another URL, with a copy of the folder if its trials are still needed"
            )
        url = f"{plain}.{row.uuid[:_SHORT_CHARACTERS]}"  # no name of a study has a dot
        log(f"warning: {plain} belongs to a study of another store: the files of this one are in {url}")
        _is_free(url, row.uuid, adopts=True)
    store.record_projection(row.name, target=TARGET, external_id=url)


def remove_place(settings: Settings, store: Store, row: StudyRow) -> None:
    """Remove the folder of a study on shared storage, unless another store's study has left its file there.

    Args:
        settings: Of the installation.
        store: Holds the study, and knows the folder that it took.
        row: The study.

    Raises:
        ArtifactError: Shared storage cannot be reached, or does not remove a file.
    """
    url = shared_place(settings, store, row.name)
    if url is None:
        return
    with explained(url):
        storage, folder = fsspec.url_to_fs(url)
        others = _names(storage, f"{folder}/{OWNERS}") - {row.uuid}
    if not others:
        remove_folder(url)


def _recorded(settings: Settings, store: Store, study: str) -> str | None:
    found = next((row for row in store.projections(study, TARGET) if row.trial is None), None)
    # With another NAS_BLOCKOUT_ARTIFACTS a study begins anew.
    return found.external_id if found and found.external_id.rpartition("/")[0] == settings.artifacts else None


def _is_free(url: str, owner: str, *, adopts: bool) -> bool:
    """Leave the owner's file in a folder; return whether there is no other's, and nothing of unknown owners.

    Args:
        url: Of the folder.
        owner: UUID of the study.
        adopts: Whether files without an owner may be the study's own.
    """
    with explained(url):
        storage, folder = fsspec.url_to_fs(url)
        owners, mine = f"{folder}/{OWNERS}", f"{folder}/{OWNERS}/{owner}"
        present = _names(storage, owners)
        if present - {owner} or (not present and not adopts and storage.exists(folder) and storage.find(folder)):
            return False
        storage.makedirs(owners, exist_ok=True)
        storage.pipe_file(mine, owner.encode())
        if _names(storage, owners) == {owner}:
            return True
        storage.rm_file(mine)
        return False


def _names(storage: Any, folder: str) -> set[str]:
    storage.invalidate_cache()  # its listing may be older than what another machine has written
    try:
        return {path.rpartition("/")[2] for path in storage.ls(folder, detail=False)} - {""}
    except FileNotFoundError:
        return set()
