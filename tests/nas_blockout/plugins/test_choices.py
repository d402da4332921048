"""Plug-ins are found by entry point or place, imported only when named, and told apart in one sentence each."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas_blockout.backbones import CHOICES, backbone_named, name_of
from nas_blockout.experiment import Experiment, backbone_from_json, built_for_training
from nas_blockout.methods import method_from_json
from nas_blockout.plugins.choices import allowing
from nas_blockout.plugins.installed import installed
from nas_blockout.settings_fields import Conflict
from search_spaces import space_named
from tests.plugin_packages import NETS, write_package

BACKBONES = "nas_blockout.backbones"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the search path of modules."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_listing_names_imports_nothing(site: Path) -> None:
    trace = write_package(site, "listed_nets", {BACKBONES: {"listed_net": "listed_nets.nets:Net"}})
    assert "listed_net" in CHOICES.names()
    found = next(each for each in installed("backbone") if each.name == "listed_net")
    assert (found.place, found.distribution, found.version) == ("listed_nets.nets:Net", "listed-nets", "1.0")
    assert CHOICES.is_known("listed_net")
    assert not trace.exists()


def test_a_backbone_by_entry_point_or_place_is_one_backbone(site: Path) -> None:
    trace = write_package(site, "own_nets", {BACKBONES: {"own_net": "own_nets.nets:Net"}})
    by_place = backbone_from_json({"name": "own_nets.nets:Net", "width": 5})
    by_name = backbone_from_json({"name": "own_net", "width": 5})
    assert by_place == by_name
    assert name_of(by_place) == "own_net"
    assert trace.exists()
    experiment = Experiment(backbone=by_name)
    assert Experiment.from_json(experiment.to_json()) == experiment
    network = built_for_training(experiment, shape=(1, 8, 8), classes=10)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_place_without_an_entry_point_is_its_own_name(site: Path) -> None:
    write_package(site, "bare_nets", {})
    settings = backbone_from_json({"name": "bare_nets.nets:Net"})
    assert name_of(settings) == "bare_nets.nets:Net"
    origin = CHOICES.origin("bare_nets.nets:Net")
    assert origin is not None
    assert (origin.distribution, origin.version) == ("bare-nets", "1.0")
    file = site / "mine.py"
    file.write_text(NETS)
    assert name_of(backbone_from_json({"name": f"{file}:Net"})) == f"{file}:Net"


def test_built_in_names_win(site: Path) -> None:
    trace = write_package(site, "rude_nets", {BACKBONES: {"convnet": "rude_nets.nets:Net"}})
    assert backbone_named("convnet") is CHOICES.built_in["convnet"]
    assert CHOICES.origin("convnet") is None
    assert not trace.exists()


def test_one_name_of_two_distributions_is_refused_with_both(site: Path) -> None:
    first = write_package(site, "first_nets", {BACKBONES: {"twice": "first_nets.nets:Net"}})
    second = write_package(site, "second_nets", {BACKBONES: {"twice": "second_nets.nets:Net"}}, version="2.1")
    with pytest.raises(Conflict) as caught:
        backbone_from_json({"name": "twice"})
    assert str(caught.value) == (
        "backbone.name: 'twice' is a backbone of several distributions: first-nets 1.0 (first_nets.nets:Net) and "
        "second-nets 2.1 (second_nets.nets:Net); name one by its place, or uninstall the other"
    )
    assert not first.exists()
    assert not second.exists()
    assert name_of(backbone_from_json({"name": "second_nets.nets:Net"})) == "second_nets.nets:Net"


def test_a_plugin_that_fails_is_told_by_name_and_harms_nobody_else(site: Path) -> None:
    write_package(site, "broken_nets", {BACKBONES: {"broken_net": "broken_nets.nets:Net"}}, "import no_such_library\n")
    rule = (
        r"backbone\.name: the plug-in broken_net of broken-nets 1\.0 \(broken_nets\.nets:Net\) cannot be used: cannot "
        r"import broken_nets\.nets: ModuleNotFoundError at .*broken_nets/nets\.py:1: No module named 'no_such_library'"
    )
    with pytest.raises(Conflict, match=rule):
        backbone_from_json({"name": "broken_net"})
    assert "broken_net" in CHOICES.names()
    assert backbone_from_json({"name": "convnet"}) is not None


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("Net = 3\n", "it must be a Backbone, or a class of nn.Module that is called with"),
        ("from torch import nn\nclass Net(nn.Module):\n    pass\n", "the constructor of Net must take its settings"),
        (NETS.replace("frozen=True, slots=True", ""), "its settings NetSettings must be frozen"),
        (NETS.replace("= 8", ""), "every setting must have a default, which width of NetSettings have not"),
        (NETS.replace("width: Nodes", "depth: Nodes"), "must describe every setting under Args"),
        (NETS.replace("class Net(", "class Other("), "has no 'Net'; known are "),
    ],
    ids=["value", "constructor", "thawed", "bare", "wordless", "absent"],
)
def test_what_is_no_backbone_is_told(site: Path, code: str, rule: str, request: pytest.FixtureRequest) -> None:
    name = f"no_net_{request.node.callspec.id}"
    write_package(site, name, {BACKBONES: {name: f"{name}.nets:Net"}}, code)
    with pytest.raises(Conflict) as caught:
        backbone_from_json({"name": name})
    assert rule in str(caught.value)


def test_methods_and_spaces_say_what_they_must_be(site: Path) -> None:
    code = """
        from nas_blockout.methods import Method
        from nas_blockout.methods.dropout import Dropout, DropoutSettings
        from nas_blockout.methods.none import NoneSettings
        TAKEN = Method(DropoutSettings, "nodes", Dropout)
        NOWHERE = Method(NoneSettings, "structure", None)
        UNPLACED = Method(NoneSettings, "maps", Dropout)
        def one(trial):
            pass
        def failing(trial, context):
            return 1 / 0
    """
    write_package(site, "odd_methods", {}, code)
    for name, rule in (
        ("TAKEN", "its settings DropoutSettings are those of the method dropout: make it its own"),
        ("NOWHERE", "it must have a layer, and one of the sites nodes, weights, maps, got the site structure without"),
        ("UNPLACED", "the settings of a method for maps must have last_stages, as in SpatialDropoutSettings"),
    ):
        with pytest.raises(Conflict) as caught:
            method_from_json({"name": f"odd_methods.nets:{name}"})
        assert rule in str(caught.value)
    with pytest.raises(Conflict, match="it must be a function that takes a trial and a context"):
        space_named("odd_methods.nets:one")
    with pytest.raises(ValueError, match=r"failing.* failed: ZeroDivisionError at .*nets\.py:11: division by zero"):
        space_named("odd_methods.nets:failing")(None, None)  # type: ignore[arg-type]


def test_what_is_not_allowed_is_not_imported(site: Path) -> None:
    trace = write_package(site, "barred_nets", {BACKBONES: {"barred_net": "barred_nets.nets:Net"}})
    for name in ("barred_net", "barred_nets.nets:Net"):
        with allowing(lambda origin: False), pytest.raises(Conflict, match="is not allowed here, and was not imported"):
            backbone_from_json({"name": name})
    assert not trace.exists()
    with allowing(lambda origin: origin.distribution == "barred-nets"):
        backbone_from_json({"name": "barred_net"})
    assert trace.exists()


def test_a_fresh_process_finds_the_plugin_of_an_experiment(site: Path) -> None:
    write_package(site, "far_nets", {BACKBONES: {"far_net": "far_nets.nets:Net"}})
    text = str(Experiment(backbone=backbone_from_json({"name": "far_net", "width": 3})).to_json())
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from nas_blockout.experiment import Experiment; "
        f"print(Experiment.from_json({text}).backbone.width)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "3"
