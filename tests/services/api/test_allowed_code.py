"""The service runs no code but what its operator allows, and imports none of it itself."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.plugins.installed import Origin
from services.api.requests.allowed_code import refused
from services.settings import Settings
from tests.plugin_packages import write_package

TORCHVISION = {"name": "module", "factory": "torchvision.models:resnet18"}
HERE = {"name": "module", "factory": "probe_of_the_service:net"}


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that leaves a file behind as soon as it is imported."""
    trace = tmp_path / "imported"
    (tmp_path / "probe_of_the_service.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return trace


@pytest.mark.parametrize(
    ("where", "key"),
    [
        (lambda backbone: {"backbone": backbone, "arms": {"a": {}}}, "backbone.factory"),
        (lambda backbone: {"arms": {"a": {"backbone": backbone}}}, "arms.a.backbone.factory"),
    ],
)
def test_a_factory_that_is_not_allowed_is_refused_before_anything_is_imported(
    ann, study, store, told, probe, where, key
):
    answer = ann.post("/v1/studies", json={**study, **where(HERE)})
    found = told(answer, 422, "invalid_study")
    assert [each["key"] for each in found["errors"]] == [key]
    assert found["value"] == "'probe_of_the_service:net'"
    assert found["message"].startswith(f"{key}: the operator of this service does not allow this factory")
    assert found["remedy"].startswith("NAS_BLOCKOUT_FACTORIES of the service allows none; run other studies")
    assert store.queue() == ()
    assert not probe.exists()


def test_an_allowed_factory_is_queued_and_left_to_the_job(client, limited, study, store, probe):
    app = limited(factories=("torchvision.models:*", "probe_of_the_service:net"))
    arms = {"a": {}, "b": {"backbone": HERE, "method": {"name": "blockout", "masked": ["fc"]}}}
    answer = client("ann", to=app).post("/v1/studies", json={**study, "backbone": TORCHVISION, "arms": arms})
    assert answer.status_code == 201, answer.text
    assert store.queued_study("tiny").document["arms"]["b"]["experiment"]["backbone"]["factory"] == HERE["factory"]
    assert not probe.exists()
    assert "probe_of_the_service" not in sys.modules


def test_the_budget_is_checked_and_every_other_error_is_listed(client, limited, study, told):
    app = limited(factories=("torchvision.models:*",))
    arms = {"a": {"backbone": HERE}, "b": {}}
    changes = {"backbone": {**TORCHVISION, "argments": {}}, "budget": {"sample_passes": 400}, "arms": arms}
    text = yaml.safe_dump({**study, **changes}, sort_keys=False)
    answer = client("ann", to=app).post("/v1/studies", content=text, headers={"Content-Type": "application/yaml"})
    found = told(answer, 422, "invalid_study")
    assert [each["key"] for each in found["errors"]] == [
        "backbone.argments",
        "budget.sample_passes",
        "arms.a.backbone.factory",
    ]
    assert all(each["line"] for each in found["errors"])


def test_a_change_of_a_queued_study_is_checked_too(client, limited, study, told, store, probe):
    ann = client("ann", to=limited(factories=("torchvision.models:*",)))
    assert ann.post("/v1/studies", json={**study, "backbone": TORCHVISION, "arms": {"a": {}}}).status_code == 201
    changes = {"assignments": [f"arms.b={{backbone: {{factory: '{HERE['factory']}'}}}}"]}
    answer = ann.post("/v1/studies/tiny/extend", json=changes)
    assert told(answer, 422, "invalid_study")["key"] == "arms.b.backbone.factory"
    assert not probe.exists()


def rules(document: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    found = refused(document, Settings(Path("/home"), "sqlite:////store.db", **settings))
    return [(each.key, each.rule) for each in found]


def test_a_file_is_never_allowed() -> None:
    for factory in ("net.py:net", "/a/net.py:net", "torchvision.py:net"):
        document = {"backbone": {"name": "module", "factory": factory}}
        assert rules(document, factories=("*:*",)) == [
            ("backbone.factory", "a file of yours cannot be run by the service")
        ]
    assert rules({"backbone": TORCHVISION}, factories=("*:*",)) == []


@pytest.mark.parametrize(
    ("factory", "allowed"),
    [
        ("torchvision.models:resnet18", True),
        ("torchvision.models:resnet50", True),
        ("torchvision.models:os.system", False),
        ("torchvision.models.detection:resnet18", False),
        ("torchvision:models", False),
        ("atorchvision.models:resnet18", False),
        ("Torchvision.models:resnet18", False),
        ("torchvision.models:resnet18\n", False),
        ("mine:net", True),
        ("mine:nets", False),
    ],
)
def test_a_pattern_allows_what_it_matches_as_a_whole(factory: str, allowed: bool) -> None:
    settings = Settings(Path("/home"), "sqlite:////store.db", factories=("torchvision.models:*", "mine:net"))
    assert settings.allows_factory(factory) is allowed


def test_weights_must_lie_in_the_folder_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "secret.pt").touch()
    (folder / "link.pt").symlink_to(tmp_path / "secret.pt")
    outside = ["/etc/x.pt", "w.pt", f"{folder}/../secret.pt", f"{folder}/link.pt", f"{folder}s/w.pt", "/a\0.pt"]
    for path in [*outside, f"{folder}/w.pt"]:
        document = {"arms": {"a": {"backbone": {"weights": path}}}}
        key = "arms.a.backbone.weights"
        assert rules(document) == [(key, "the operator of this service allows no files of weights")]
        found = rules(document, weights=folder)
        rule = "must be the absolute path of a file in the folder of weights of this service"
        assert found == ([(key, rule)] if path in outside else [])


def test_settings_of_any_other_type_are_left_to_the_schema(ann, study, told):
    arms = {"a": {"backbone": [1]}, "b": {"backbone": {"factory": 3}}, "c": 5, "d": {"backbone": {"weights": {}}}}
    found = told(
        ann.post("/v1/studies", json={**study, "backbone": {"name": "module"}, "arms": arms}), 422, "invalid_study"
    )
    assert {"backbone.factory", "arms.a.backbone", "arms.b.backbone.factory"} <= {
        each["key"] for each in found["errors"]
    }


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed backbone that leaves a file behind as soon as it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"served_nets_{tmp_path.name.replace('-', '_')}"
    entries = {"nas_blockout.backbones": {"served_net": f"{name}.nets:Net"}}
    return write_package(tmp_path, name, entries)


def place_of(trace: Path) -> str:
    return f"{trace.parent.name}.nets:Net"


@pytest.mark.parametrize("by_place", [False, True])
def test_a_plugin_that_is_not_allowed_is_refused_and_not_imported(ann, study, told, store, plugin, by_place):
    name = place_of(plugin) if by_place else "served_net"
    arms = {"a": {"backbone": {"name": name, "width": 3}}, "b": {"method": {"name": "no.methods:one"}}}
    found = told(ann.post("/v1/studies", json={**study, "arms": arms}), 422, "invalid_study")
    assert [each["key"] for each in found["errors"]] == ["arms.a.backbone.name", "arms.b.method.name"]
    assert found["message"].startswith("arms.a.backbone.name: the operator of this service does not allow this plug-in")
    assert found["remedy"].startswith("NAS_BLOCKOUT_PLUGINS of the service allows none; run other studies")
    assert store.queue() == ()
    assert not plugin.exists()


def test_a_plugin_that_is_allowed_by_name_is_checked_and_queued(client, limited, study, told, store, plugin):
    ann = client("ann", to=limited(plugins=("served_net",)))
    wrong = {"a": {"backbone": {"name": "served_net", "width": 900}}}
    assert told(ann.post("/v1/studies", json={**study, "arms": wrong}), 422, "invalid_study")["key"] == (
        "arms.a.backbone.width"
    )
    arms = {"a": {"backbone": {"name": "served_net", "width": 3}}}
    answer = ann.post("/v1/studies", json={**study, "arms": arms})
    assert answer.status_code == 201, answer.text
    assert "served_net" in store.queued_study("tiny").document["plugins"]["backbones"]
    assert plugin.exists()


def test_one_rule_allows_factories_and_plugins_and_files_never() -> None:
    settings = Settings(Path("/home"), "sqlite:////store.db", factories=("*:*",), plugins=("*", "*:*"))
    for name, allowed in (("small_net", True), ("my.nets:Net", True), ("/a/net.py:Net", False), ("net.py:Net", False)):
        assert settings.allows_origin(Origin(name, name)) is allowed
    narrow = Settings(Path("/home"), "sqlite:////store.db", plugins=("my.*:*",))
    assert narrow.allows_origin(Origin("small_net", "my.nets:Net"))
    assert not narrow.allows_origin(Origin("small_net", "your.nets:Net"))


@pytest.mark.parametrize("section", ["searcher", "pruner"])
def test_a_plugin_of_the_search_is_refused_unless_it_is_allowed(tmp_path, monkeypatch, section: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    trace = write_package(
        tmp_path, f"served_{section}", {f"nas_blockout.{section}s": {"served": f"served_{section}.nets:Net"}}
    )
    for named, key in (
        ("served", ""),
        ({"name": "served"}, ".name"),
        ({"name": f"served_{section}.nets:Net"}, ".name"),
    ):
        found = rules({"arms": {"a": {section: named}}})
        assert found == [(f"arms.a.{section}{key}", "the operator of this service does not allow this plug-in")]
        assert rules({"arms": {"a": {section: named}}}, plugins=("served",)) == []
    assert rules({"arms": {"a": {section: {"name": "/a/b.py:ONE"}}}}, plugins=("*:*",))[0][1].startswith(
        "a file of yours"
    )
    assert rules({"arms": {"a": {"searcher": "tpe", "pruner": {"name": "successive_halving"}}}}) == []
    assert not trace.exists()


def test_a_searcher_that_is_not_allowed_is_not_imported_with_a_submitted_study(ann, study, told, store, probe) -> None:
    arms = {"a": {"searcher": "probe_of_the_service:net"}}
    found = told(ann.post("/v1/studies", json={**study, "arms": arms}), 422, "invalid_study")
    assert [each["key"] for each in found["errors"]] == ["arms.a.searcher"]
    assert store.queue() == ()
    assert not probe.exists()
