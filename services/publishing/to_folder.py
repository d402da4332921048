"""Publishing a model to a folder."""

from pathlib import Path

from nas_blockout.atomic_files import whole_folder
from nas_blockout.export import MANIFEST
from services.publishing.published_files import write_published


class DestinationTaken(ValueError):
    """There is something else where a model is to be published."""


def push_to_folder(model: Path, target: Path, *, license: str | None = None, force: bool = False) -> None:
    """Publish a model to a folder, which appears whole or not at all, and replaces an earlier push of it in one step.

    Args:
        model: Folder of an exported model.
        target: The folder; those above it are made.
        license: As of `write_published`.
        force: Whether to replace whatever is there.

    Raises:
        DestinationTaken: There is a file, or a folder of anything but a published model, and no `force`.
        VerificationError: As of `write_published`.
        ValueError: The folder is the model's own, is above or below it, or as of `write_published`.
        OSError: It cannot be written.
    """
    here, there = model.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"{target} is the folder of the model, or within or above it: name another one")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise DestinationTaken(f"{target} is not a folder: name another one")
    content = [path.name for path in target.iterdir()] if target.is_dir() else []
    if content and MANIFEST not in content and not force:
        raise DestinationTaken(
            f"{target} holds {content[0]!r} and no published model: name an empty folder, or replace all of it "
            "by --force"
        )
    with whole_folder(target) as part:
        write_published(model, part, license=license)
