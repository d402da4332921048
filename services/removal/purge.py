"""Purging a deleted study: MLflow's runs, then files, then rows. Doing it again completes what was interrupted."""

import shutil

from services.files.shared_place import remove_place
from services.settings import Settings
from services.store import NotFound, Store
from services.tracking import discard


def purge(settings: Settings, store: Store, study: str, *, early: bool = False) -> bool:
    """Remove what a deleted study has left; return whether its grace time is over, or need not be.

    The rows are deleted last, since they say what is where.

    Args:
        settings: Of the installation.
        store: Holds the study.
        study: Name of the study.
        early: Whether to purge it before its grace time is over.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
        ArtifactError: Shared storage cannot be reached.
        OSError: A file cannot be removed.
        StoreError: The store cannot be written.
    """
    if not store.begin_purge(study, early=early):
        return False
    try:
        row = store.study(study)
    except NotFound:  # no driver has begun it, or an earlier purge was interrupted at the last step
        row = None
    if row is not None:
        if settings.tracking_uri is not None:
            discard(settings.tracking_uri, study, store)
        remove_place(settings, store, row)
    folder = settings.folder(study)
    if folder.exists():
        shutil.rmtree(folder)
    store.finish_purge(study)
    return True
