"""Publishing a model to Hugging Face's hub: one commit, with the token that Hugging Face's own login has stored."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.publishing.published_files import write_published

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
HUB = "hf://"
_MOST_OF_A_REASON = 300


class HubError(RuntimeError):
    """The hub cannot be reached, or has refused; nothing was committed."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What the hub has now: the page of the commit, or of the repository if nothing had changed."""

    url: str


def repository_of(destination: str) -> str:
    """Return the repository that a destination such as ``hf://owner/name`` names.

    Raises:
        ValueError: It names none.
    """
    name = destination.removeprefix(HUB).strip("/")
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise ValueError(f"a repository of the hub is owner/name, got {destination!r}")
    return name


def push_to_hub(
    model: Path, repository: str, *, license: str | None = None, private: bool = True, revision: str | None = None
) -> Pushed:
    """Publish a model to a repository of the hub, which is made if there is none, in one commit.

    The token is that of `hf auth login` or of the variable ``HF_TOKEN``, which huggingface_hub reads by itself; it is
    neither read nor shown here. A repository that exists stays as private or public as it is.

    Args:
        model: Folder of an exported model.
        repository: ``owner/name``.
        license: As of `write_published`.
        private: Whether a new repository is private.
        revision: Branch to commit to; it is made if there is none. None for the main one.

    Raises:
        HubError: huggingface_hub is not installed, nobody is logged in, or the hub does not answer or refuses.
        VerificationError: As of `write_published`; nothing is sent.
        ValueError: Likewise.
    """
    try:
        import httpx  # which huggingface_hub sends with
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    except ImportError:
        raise HubError("huggingface_hub is not installed: pip install 'nas-blockout[hub]'") from None
    with tempfile.TemporaryDirectory(prefix="nas-blockout-push-") as name:
        folder = Path(name)
        write_published(model, folder, license=license)
        api = HfApi()
        try:
            api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, repo_type="model", exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                repo_type="model",
                revision=revision,
                commit_message="Model exported by nas_blockout",
            )
        except LocalTokenNotFoundError:
            raise HubError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN") from None
        except HfHubHTTPError as error:
            raise HubError(_refused(error, repository)) from None
        except (httpx.HTTPError, OSError) as error:
            raise HubError(
                f"the hub cannot be reached ({type(error).__name__}): nothing was committed; try again later"
            ) from None
    return Pushed(str(commit.commit_url))


def _refused(error: Exception, repository: str) -> str:
    """Return why the hub has refused, in one line, without what was sent."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reasons = {
        401: "the hub does not accept the token, or there is none: run `hf auth login`, or set HF_TOKEN",
        403: f"the token may not write to {repository}: use one with write access",
        404: f"there is no {repository} for this token",
    }
    said = " ".join(str(getattr(error, "server_message", None) or "").split())[:_MOST_OF_A_REASON]
    reason = reasons.get(status or 0, f"the hub has refused with status {status}{f': {said}' if said else ''}")
    return f"{reason}; nothing was committed"
