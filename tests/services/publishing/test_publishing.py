"""Publishing an exported model: what is in the folder, what is refused, and what the hub is asked for."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from nas_blockout.export import MANIFEST, ExportedModel, VerificationError, verify
from nas_blockout.export.cards import card
from nas_blockout.export.model_dir import sha256
from nas_blockout.export.verification import REQUIRED, SCHEMA_VERSION, sealed
from services.publishing import to_folder, to_hub
from services.publishing.to_folder import DestinationTaken, push_to_folder
from services.publishing.to_hub import HubError, push_to_hub, repository_of

hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError  # noqa: E402  # after the check above

from tests.nas_blockout.export.conftest import exported  # noqa: E402, F401  # a fixture
from tests.nas_blockout.export.examples import DESCRIPTION  # noqa: E402


def written(folder: Path, name: str = "dense") -> Path:
    """A folder of files as an export leaves them, whose forms are empty: what only copies it need not run them."""
    folder.mkdir()
    for file in (*REQUIRED, "model.onnx"):
        (folder / file).write_text(card(DESCRIPTION) if file == "card.md" else f"{file} of {name}")
    files = {path.name: sha256(path) for path in folder.iterdir()}
    (folder / MANIFEST).write_text(sealed({"schema_version": SCHEMA_VERSION, "name": name, "files": files}))
    return folder


def test_a_published_folder_has_the_card_as_readme_and_verifies_by_itself(exported: Path, tmp_path: Path) -> None:  # noqa: F811
    push_to_folder(exported / "dense", tmp_path / "a" / "b", license="apache-2.0")
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert names == {path.name for path in (exported / "dense").iterdir()} - {"card.md"} | {"README.md"}
    assert hub.ModelCard.load(tmp_path / "a" / "b" / "README.md").data.license == "apache-2.0"
    assert verify(tmp_path / "a" / "b").ok
    assert ExportedModel.open(tmp_path / "a" / "b").preprocessing["probabilities"]["temperature"] == 2.5
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"], "nothing is left beside it"


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out reloading in a fresh process, which takes seconds, from tests of what comes after it."""
    import services.publishing.published_files as module
    from nas_blockout.export.verification import Verification, check_files

    def quick(folder: Path) -> Verification:
        findings = tuple(check_files(folder)[1])
        return Verification(not findings, findings)

    monkeypatch.setattr(module, "verify", quick)


def test_a_model_that_was_changed_is_not_published(tmp_path: Path) -> None:
    model = written(tmp_path / "model")
    with (model / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(VerificationError, match=r"weights\.safetensors has been changed"):
        push_to_folder(model, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("unverified")
def test_other_content_is_not_replaced_unless_forced_and_an_earlier_push_is(tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.mkdir()
    branched, dense = (written(tmp_path / name, name) for name in ("branched", "dense"))
    (target / "thesis.tex").write_text("years")
    with pytest.raises(DestinationTaken, match=r"holds 'thesis\.tex' and no published model"):
        push_to_folder(branched, target)
    assert (target / "thesis.tex").read_text() == "years"
    push_to_folder(branched, target, force=True)
    assert not (target / "thesis.tex").exists()
    push_to_folder(dense, target)
    assert ExportedModel.open(target).manifest["name"] == "dense"
    (tmp_path / "file").touch()
    with pytest.raises(DestinationTaken, match="is not a folder"):
        push_to_folder(dense, tmp_path / "file", force=True)


@pytest.mark.parametrize("place", [".", "within", ".."])
def test_a_model_is_not_published_onto_itself(tmp_path: Path, place: str) -> None:
    model = written(tmp_path / "model")
    with pytest.raises(ValueError, match="is the folder of the model, or within or above it"):
        push_to_folder(model, model / place, force=True)
    assert (model / "model.pt2").is_file()


def test_a_license_that_is_no_identifier_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be an identifier of the hub"):
        to_folder.write_published(tmp_path / "nowhere", tmp_path, license="MIT\nfoo: bar")


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "a/..", "a/b--c", "", "a b/c"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is owner/name"):
        repository_of(f"hf://{name}")
    assert repository_of("hf://ann/digits") == repository_of("ann/digits") == "ann/digits"


_CLIENT = hub.HfApi


class Hub:
    """Notes what is asked of it, by the signatures of the real client, and what it is given."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            bound = inspect.signature(getattr(_CLIENT, name)).bind(None, *arguments, **keywords).arguments
            self.asked.append((name, {key: value for key, value in bound.items() if key != "self"}))
            if name == "upload_folder":
                if self.failure is not None:
                    raise self.failure
                self.files = {path.name: path.read_bytes() for path in Path(bound["folder_path"]).iterdir()}
            return SimpleNamespace(commit_url="https://huggingface.co/ann/digits/commit/1")

        return call


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unverified: None):
    model = written(tmp_path / "dense")

    def push(there: Hub, **options: Any) -> str:
        monkeypatch.setattr(hub, "HfApi", lambda: there)
        return push_to_hub(model, "ann/digits", **options).url

    return push


def test_the_hub_is_asked_for_one_commit_of_what_a_folder_would_get(pushed) -> None:
    there = Hub()
    assert pushed(there, license="mit") == "https://huggingface.co/ann/digits/commit/1"
    assert [name for name, _ in there.asked] == ["create_repo", "upload_folder"]
    created, uploaded = (asked for _, asked in there.asked)
    assert created == {"repo_id": "ann/digits", "repo_type": "model", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["repo_type"]) == ("ann/digits", "model")
    assert "token" not in created | uploaded
    assert set(there.files) == {*REQUIRED, "model.onnx", MANIFEST, "README.md"} - {"card.md"}
    assert not any(name.endswith((".pt", ".pth", ".pkl", ".bin")) for name in there.files)
    assert hub.ModelCard(there.files["README.md"].decode()).data.license == "mit"
    assert json.loads(there.files["verification.json"])["files"]["README.md"]
    assert not Path(uploaded["folder_path"]).exists()


def test_a_branch_is_made_for_a_revision_and_a_repository_is_public_if_asked(pushed) -> None:
    there = Hub()
    pushed(there, private=False, revision="v2")
    (_, created), (name, branch), (_, uploaded) = there.asked
    assert not created["private"]
    assert (name, branch["branch"], branch["exist_ok"], uploaded["revision"]) == ("create_branch", "v2", True, "v2")


def refused(status: int) -> Exception:
    request = httpx.Request("POST", "https://huggingface.co/api/x", headers={"authorization": "Bearer hf_secret"})
    return HfHubHTTPError("hf_secret", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (refused(401), "the hub does not accept the token, or there is none"),
        (refused(403), "the token may not write to ann/digits"),
        (refused(500), "the hub has refused with status 500"),
        (httpx.ConnectError("no route"), r"the hub cannot be reached \(ConnectError\): nothing was committed"),
        (LocalTokenNotFoundError("none"), "nobody is logged in to the hub: run `hf auth login`"),
    ],
)
def test_a_failure_is_one_line_without_what_was_sent(pushed, failure: Exception, message: str) -> None:
    with pytest.raises(HubError, match=message) as caught:
        pushed(Hub(failure))
    assert "hf_secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'nas-blockout\[hub\]'"):
        to_hub.push_to_hub(tmp_path, "ann/digits")
