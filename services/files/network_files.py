"""Files outside the package that make the results of a study: its numbers are theirs, so they must not change."""

from collections.abc import Mapping
from pathlib import Path

from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.export.model_dir import sha256
from nas_blockout.plugins.named_code import file_of
from services.plugin_records import used
from services.store import Store, StudyConflict
from services.study_config.resolved_study import Study


def files_of(study: Study) -> dict[str, str]:
    """Return the SHA-256 of the files that make the results of a study, by path: of its code, weights and table.

    What such a file imports is not looked at. A file that is missing is left out: whoever builds the network
    refuses it.
    """
    table = study.data.table
    paths = {Path(table)} if table is not None and Path(table).is_file() else set[Path]()
    for arm in study.arms.values():
        backbone = arm.experiment.backbone
        if isinstance(backbone, ModuleSettings):
            paths |= {path for path in backbone.files if path.is_file()}
        places = (file_of(origin.place) for _, origin in used(*arm.code))
        paths |= {path for path in places if path is not None and path.is_file()}
    return {str(path): sha256(path) for path in sorted(paths)}


def require_same_files(store: Store, study: str, files: Mapping[str, str]) -> None:
    """Refuse files that have changed: the finished trials were made with others. Older studies have none recorded.

    Args:
        store: Holds the study.
        study: Its name.
        files: As of `files_of`.

    Raises:
        StudyConflict: A file has another content than when the study was begun.
    """
    recorded = dict[str, str]()
    for event in store.events(study):
        recorded |= event.detail.get("files", {})
    for path, digest in files.items():
        if recorded.get(path, digest) != digest:
            raise StudyConflict(
                f"study {study!r} was begun with another content of {path} (SHA-256 {recorded[path][:12]}, now "
                f"{digest[:12]}): its trials were made with that; restore the file, or run the study under another "
                "name"
            )
