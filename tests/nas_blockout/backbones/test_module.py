"""A network that a factory makes: imported, called, given weights and a classes layer, or refused in one sentence."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.module import ModuleNetwork, ModuleSettings
from nas_blockout.backbones.module import build as build_module
from nas_blockout.backbones.pretrained import load_pretrained, read_weights
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build, known_costs, notes_of, rebuild, unbuildable
from nas_blockout.experiment.builder import plain_state
from nas_blockout.export import save_weights
from nas_blockout.methods import method_from_json
from nas_blockout.settings_fields import conflicts_in
from nas_blockout.training import TrainingSettings
from tests.fixtures.networks import Small

FILE = Path(__file__).parents[2] / "fixtures" / "networks.py"
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings("digits", train_samples=40, validation_samples=20))


def experiment(factory: str, method: dict[str, Any] | None = None, *, seed: int = 0, **settings: Any) -> Experiment:
    name = factory if ":" in factory else f"{FILE}:{factory}"
    training = TrainingSettings(epochs=2, batch_size=20)
    return Experiment(
        backbone=ModuleSettings(name, **settings),
        method=method_from_json(method or {"name": "none"}),
        training=training,
        seed=seed,
    )


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(FILE.read_text().splitlines(), 1) if text in line)


def network_of(found: nn.Module) -> ModuleNetwork:
    assert isinstance(found, ModuleNetwork)
    return found


def test_a_factory_gets_its_arguments_and_the_number_of_classes(splits: Splits) -> None:
    network = network_of(build(experiment("Small", arguments={"width": 3}), splits))
    assert network(torch.zeros(5, *SHAPE)).shape == (5, 10)
    assert network.module.get_parameter("conv.weight").shape == (3, 1, 3, 3)
    assert (network.classes_layer, network.notes) == ("fc", ())
    assert network.training


def test_settings_are_values_that_json_carries() -> None:
    first = experiment("Small", arguments={"width": 3, "sizes": [1, {"a": None}]})
    second = experiment("Small", arguments={"sizes": (1, {"a": None}), "width": 3})
    assert first == second
    assert hash(first.backbone) == hash(second.backbone)
    assert Experiment.from_json(first.to_json()) == first
    assert first.backbone != replace(first.backbone, arguments={"width": True})
    assert first.to_json()["backbone"]["arguments"] == {"sizes": [1, {"a": None}], "width": 3}


def test_one_seed_gives_one_network_and_global_generators_are_as_before(splits: Splits) -> None:
    before = torch.get_rng_state()
    for factory in ("thousand", "drawn_elsewhere"):
        states = [build(experiment(factory, seed=seed), splits).state_dict() for seed in (1, 1, 2)]
        weight = "module.fc.weight" if factory == "thousand" else "module.3.weight"
        assert torch.equal(states[0][weight], states[1][weight])
        assert not torch.equal(states[0][weight], states[2][weight])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trial_of_a_network_leaves_no_trace_in_it(splits: Splits) -> None:
    state = build(experiment("seen_buffers"), splits).state_dict()
    assert state["module.1.num_batches_tracked"] == 0
    assert torch.equal(state["module.1.running_var"], torch.ones(64))


def test_a_classes_layer_for_other_classes_is_replaced_and_said(splits: Splits) -> None:
    setting = experiment("thousand")
    network = network_of(build(setting, splits))
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 10)
    (note,) = network.notes
    assert note == "the classes layer fc gives 1000 logits: it is replaced by a new one for 10 classes"
    assert notes_of(setting, shape=SHAPE, classes=10) == (note,)
    assert notes_of(Experiment(), shape=SHAPE, classes=10) == ()


def test_it_is_judged_and_priced_without_values(splits: Splits) -> None:
    setting = experiment("with_values")
    assert list(unbuildable(setting, shape=SHAPE, classes=10)) == []
    with torch.device("meta"):
        costs = known_costs(setting, shape=SHAPE, classes=10)
    assert costs == {"parameters": 4 * 9 + 4 + 8 + 50, "macs": 4 * 9 * 64 + 40}


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no_such_package.models:net", {}, "backbone.factory", "cannot import no_such_package.models: ModuleNotFoundError"),
    ("missing.py:net", {}, "backbone.factory", "there is no file missing.py"),
    ("Smal", {}, "backbone.factory", "has no 'Smal'; did you mean 'Small'?"),
    ("NOT_CALLABLE", {}, "backbone.factory", "must be a function or a class that makes the network, got 'NOT_CALL"),
    ("broken", {}, "backbone.factory", f"RuntimeError at {FILE}:{line_of('out of ideas')}: out of ideas"),
    ("no_module", {}, "backbone.factory", "must return an nn.Module, got object"),
    ("Small", {"arguments": {"widht": 3}}, "backbone.arguments", "takes no argument 'widht'; did you mean 'width'?"),
    ("ForEight", {"arguments": {"num_classes": "ten"}}, "backbone.factory", "failed: TypeError at "),
    ("Small", {"arguments": {"channels": 3}}, "backbone.factory", "first convolution, conv, reads 3"),
    ("Auxiliary", {}, "backbone.factory", "must return logits in training mode, got a value of type Outputs; if it"),
    ("Maps", {}, "backbone.factory", "must return logits of shape (batch, classes), got (2, 10, 8, 8) of type float32"),
    ("TwoHeads", {}, "backbone.classes_layer", "gives 7 logits for 10 classes; set classes_layer to the linear layer"),
    ("TwoHeads", {"classes_layer": "left"}, "backbone.factory", "fails on images of 1x8x8 (channels x height x width)"),
    ("Small", {"classes_layer": "fcc"}, "backbone.classes_layer", "got 'fcc', which is no layer of"),
    ("Small", {"classes_layer": "conv"}, "backbone.classes_layer", "got 'conv', which is a Conv2d of"),
    (
        "TwoInputs",
        {},
        "backbone.factory",
        f"forward at {FILE}:{line_of('x: Tensor, mask')} takes several: x, mask. Wrap",
    ),
    ("Small", {"weights": "absent.safetensors"}, "backbone.weights", "there is no file absent.safetensors"),
]


@pytest.mark.parametrize(("factory", "settings", "key", "words"), REFUSED)
def test_each_fault_is_one_sentence_at_its_setting(
    factory: str, settings: dict[str, Any], key: str, words: str, splits: Splits
) -> None:
    setting = experiment(factory, **settings)  # nothing is imported yet
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        build(setting, splits)
    (found,) = unbuildable(setting, shape=splits.shape, classes=10)
    assert (str(found), found.keys[0]) == (str(caught.value), key)
    assert "\n" not in str(found)
    assert str(found).startswith(f"{key}: ")


def test_an_error_of_the_network_names_its_line_and_the_size_of_the_images() -> None:
    (found,) = unbuildable(experiment("ForEight"), shape=(3, 12, 12), classes=4)
    assert f"fails on images of 3x12x12 (channels x height x width): RuntimeError at {FILE}:" in str(found)
    assert f"{FILE}:{line_of('x.mean(1).view')}: " in str(found)
    assert list(unbuildable(experiment("ForEight"), shape=(3, 8, 8), classes=4)) == []


@pytest.mark.parametrize("form", ["models", "models:net:", "net.py", "a b:net", "models:", ":net", "models:net.inner"])
def test_the_form_of_a_factory_is_checked(form: str) -> None:
    with pytest.raises(ValueError, match=r"factory must be 'package.module:name' or 'path/to/file.py:name', got"):
        ModuleSettings(form)


def test_a_file_is_run_again_only_once_it_has_changed_and_may_import_its_neighbors(
    tmp_path: Path, splits: Splits
) -> None:
    (tmp_path / "neighbor_of_net.py").write_text("WIDTH = 5\n")
    file = tmp_path / "net.py"
    text = "from torch import nn\nfrom neighbor_of_net import WIDTH\nmade = []\n\n\ndef net(num_classes):\n"
    text += "    made.append(1)\n    layers = nn.Flatten(), nn.Linear(64, WIDTH), nn.Linear(WIDTH, num_classes)\n"
    file.write_text(text + "    return nn.Sequential(*layers, *[nn.Identity()] * len(made))\n")
    paths = [*sys.path]
    try:
        assert [len(network_of(build(experiment(f"{file}:net"), splits)).module) for _ in range(2)] == [4, 5]
        assert sys.path == paths
        file.write_text("def net(:\n")
        (found,) = unbuildable(experiment(f"{file}:net", seed=1, arguments={"a": 1}), shape=SHAPE, classes=10)
        assert f"cannot import {file}: SyntaxError at {file}:1: invalid syntax" in str(found)
    finally:
        sys.modules.pop("neighbor_of_net", None)


def test_torchvision_s_networks_are_factories() -> None:
    setting = experiment("torchvision.models:resnet18")
    (note,) = notes_of(setting, shape=(3, 32, 32), classes=7)
    assert "fc gives 1000 logits" in note
    (found,) = unbuildable(setting, shape=(1, 32, 32), classes=7)
    assert re.search(r"torchvision/models/resnet\.py:\d+: .*; the data has 1 channel and .* conv1, reads 3", str(found))
    (found,) = unbuildable(experiment("torchvision.models:resnet81"), shape=(3, 32, 32), classes=7)
    assert "has no 'resnet81'; did you mean 'resnet18'?" in str(found)


@pytest.mark.parametrize("method", ["dropout", "dropconnect"])
def test_dropping_enters_at_the_classes_layer_alone(method: str, splits: Splits) -> None:
    setting = experiment("thousand", {"name": method, "placement": "classifier"})
    network, plain = build(setting, splits), build(experiment("thousand"), splits)
    x = splits.train.images[:8]
    draws = [network(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match="generator"):
        network(x)
    plain.load_state_dict(plain_state(network.state_dict(), plain.state_dict()))
    assert torch.equal(network.eval()(x), plain.eval()(x))
    twin = copy.deepcopy(network).train()
    assert torch.equal(twin(x, torch.Generator().manual_seed(2)), network.train()(x, torch.Generator().manual_seed(2)))
    assert twin.get_parameter("module.fc.weight") is not network.get_parameter("module.fc.weight")


def test_dropping_needs_a_classes_layer_that_is_known() -> None:
    settings = ModuleSettings(f"{FILE}:TwoHeads")
    sites = Sites(nodes=nn.Identity, placement="classifier")
    with pytest.raises(ValueError, match=r"classes_layer: .* has no linear layer that is known to give the logits; se"):
        build_module(settings, SHAPE, 7, sites)
    assert build_module(settings, SHAPE, 7, Sites()).classes_layer is None


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ({"name": "dropblock"}, "method.name"),
        ({"name": "spatial_dropout"}, "method.name"),
        ({"name": "dropcluster"}, "method.name"),
        ({"name": "blockdrop"}, "method.name"),
        ({"name": "dropout"}, "method.placement"),
        ({"name": "dropconnect", "placement": "all"}, "method.placement"),
    ],
)
def test_methods_that_enter_elsewhere_are_refused_in_one_sentence(method: dict[str, Any], key: str) -> None:
    with pytest.raises(
        ValueError, match=r"on the backbone module|the backbone module does not know|got module"
    ) as error:
        experiment("Small", method)
    (found,) = conflicts_in(error.value)
    assert (found.keys[0], "backbone.name" in found.keys) == (key, True)


def test_a_run_trains_it_and_ends_in_the_plain_network(splits: Splits) -> None:
    setting = experiment("thousand", {"name": "dropconnect", "placement": "classifier"})
    run = Run(setting, splits)
    assert [record.epoch for record in run] == [0, 1]
    assert run.outcome is not None
    assert type(network_of(run.outcome.model).module.get_submodule("fc")) is nn.Linear
    twin = rebuild(setting, None, splits)
    twin.load_state_dict(run.outcome.model.state_dict())
    x = splits.validation.images
    assert torch.equal(twin.eval()(x), run.outcome.model(x))


@pytest.fixture
def trained(splits: Splits) -> dict[str, torch.Tensor]:
    network = network_of(build(experiment("Small", seed=9), splits)).module
    return {name: value + (0.125 if value.is_floating_point() else 5) for name, value in network.state_dict().items()}


@pytest.mark.parametrize("form", ["safetensors", "pth", "pt: model", "pt: state_dict"])
def test_pretrained_weights_are_read_strictly(
    form: str, trained: dict[str, torch.Tensor], splits: Splits, tmp_path: Path
) -> None:
    suffix, _, inner = form.partition(": ")
    path = tmp_path / f"net.{suffix}"
    if suffix == "safetensors":
        save_file(trained, path)
    else:
        torch.save({inner: trained, "epoch": 3} if inner else trained, path)
    setting = experiment("Small", weights=str(path))
    network = network_of(build(setting, splits))
    assert all(torch.equal(value, trained[name]) for name, value in network.module.state_dict().items())
    assert network.notes == ()
    path.unlink()
    rebuild(setting, None, splits)  # whose weights will be those that were trained


def test_the_weights_of_an_exported_network_are_pretrained_weights(splits: Splits, tmp_path: Path) -> None:
    """Its names stand behind ``module.``, as those of a network in torch's parallel wrappers do."""
    trained = network_of(build(experiment("Small", seed=9), splits))
    assert {name.partition(".")[0] for name in trained.state_dict()} == {"module"}
    save_weights(trained, tmp_path / "weights.safetensors")
    network = network_of(build(experiment("Small", weights=str(tmp_path / "weights.safetensors")), splits))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in network.state_dict().items())
    half = {name.removeprefix("module.") if "conv" in name else name: v for name, v in trained.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"missing: norm\..*; unexpected: module\."):
        build(experiment("Small", weights=str(tmp_path / "half.safetensors")), splits)


def test_the_classes_layer_of_weights_for_other_classes_is_left_out_and_said(
    trained: dict[str, torch.Tensor], splits: Splits, tmp_path: Path
) -> None:
    others = {**trained, "fc.weight": torch.ones(3, 6), "fc.bias": torch.ones(3)}
    save_file(others, tmp_path / "three.safetensors")
    fresh = build(experiment("Small"), splits).state_dict()
    network = network_of(build(experiment("Small", weights=str(tmp_path / "three.safetensors")), splits))
    assert torch.equal(network.module.get_parameter("conv.weight"), trained["conv.weight"])
    assert torch.equal(network.module.get_parameter("fc.weight"), fresh["module.fc.weight"])
    assert network.notes == ("three.safetensors is for 3 classes: the weights of its classes layer, fc, are not used",)


def test_all_that_does_not_fit_is_one_error(trained: dict[str, torch.Tensor], splits: Splits, tmp_path: Path) -> None:
    del trained["norm.bias"]
    save_file({**trained, "more": torch.ones(1), "conv.weight": torch.ones(6, 3, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds the weights of another network") as error:
        build(experiment("Small", weights=str(tmp_path / "x.safetensors")), splits)
    for words in ("missing: norm.bias", "unexpected: more", "of another shape: conv.weight 6x3x3x3 instead of 6x1x3x3"):
        assert words in str(error.value)
    (found,) = conflicts_in(error.value)
    assert found.keys[0] == "backbone.weights"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"net": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    ],
    ids=["one-inside", "prefixed-inside", "prefixed-twice"],
)
def test_weights_are_found_where_training_scripts_put_them(
    wrap: Callable[[dict[str, torch.Tensor]], Any], trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(wrap(trained), tmp_path / "checkpoint.pth")
    network = Small(10)
    left = load_pretrained(network, read_weights(tmp_path / "checkpoint.pth"), source="it", classes_layer="fc")
    assert left == 0
    assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())


def test_of_several_state_dictionaries_none_is_chosen_and_of_none_the_keys_are_named(
    trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for content, words in (
        ({"net": trained, "ema": trained}, r"several state dictionaries, under 'net', 'ema'; save only one"),
        ({"epoch": 3, "loss": 0.5}, r"no state dictionary, but 'epoch', 'loss'; save only the weights"),
    ):
        torch.save(content, tmp_path / "checkpoint.pth")
        with pytest.raises(ValueError, match=f"backbone.weights: .*{words}"):
            read_weights(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, trained: dict[str, torch.Tensor]) -> None:
    trained["conv.weight"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"backbone.weights: w.pth holds NaN or infinity in conv.weight; its training"):
        load_pretrained(Small(10), trained, source="w.pth", classes_layer="fc")


class Malicious:
    """Would create a file where a pickle is loaded as a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_file_of_weights_can_run_code(splits: Splits, tmp_path: Path) -> None:
    torch.save({"fc.weight": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "bad.pth").read_bytes())
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, words in {
        "bad.pth": "holds more than tensors, and loading it could run code, so it is refused",
        "bad.safetensors": "is no safetensors file",
        "text.pt": "text.pt",
        "list.pt": "holds a list instead of a state dictionary; save only the weights",
    }.items():
        with pytest.raises(ValueError, match=f"backbone.weights: .*{words}"):
            build(experiment("Small", weights=str(tmp_path / name)), splits)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"weights must be a file whose name ends in \.safetensors, \.pth or \.pt"):
        ModuleSettings("models:net", weights="net.bin")
