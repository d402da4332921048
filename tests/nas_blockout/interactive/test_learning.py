"""One network without a study: what is learned, what is refused, what is saved and read back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nas_blockout.data import ArrayData, DataUnsuitable
from nas_blockout.experiment import count_macs
from nas_blockout.interactive.given_networks import given
from nas_blockout.interactive.learned_network import LearnedNetwork
from nas_blockout.interactive.learning import learn_structure


class Small(nn.Module):
    """Two convolutions and a classifier; images with a bright left or right half, or with neither, are its classes."""

    def __init__(self, classes=3, width=8):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.fc = nn.Linear(width * 4, classes)

    def forward(self, x):
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def halves(count, seed):
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = draws.random((count, 6, 6)).astype(np.float32) * 0.3
    images[labels == 0, :, :3] += 0.6
    images[labels == 1, :, 3:] += 0.6
    return images, labels


TRAIN, VALIDATION, TEST = halves(90, 0), halves(30, 1), halves(30, 2)


def network(**changes):
    torch.manual_seed(0)
    return Small(**changes)


@pytest.fixture(scope="module")
def learned():
    options = {"method": {"clusters": 2}, "learning_rate": 0.02, "batch_size": 16}
    return learn_structure(network(), TRAIN, VALIDATION, target=0.5, epochs=8, progress=False, test=TEST, **options)


def test_the_derived_network_costs_at_most_the_target_and_has_learned(learned):
    image = torch.zeros(1, 1, 6, 6)
    assert learned.before.macs == count_macs(network().eval(), image)
    assert learned.after.macs == count_macs(learned.model, image) <= 0.5 * learned.before.macs
    assert learned.after.parameters == sum(each.numel() for each in learned.model.parameters())
    right = (learned.model(torch.from_numpy(VALIDATION[0])[:, None]).argmax(1).numpy() == VALIDATION[1]).mean()
    assert learned.validation_accuracy == pytest.approx(right)
    assert learned.validation_accuracy > 0.8
    assert learned.after.test_accuracy > 0.8
    assert (np.array(learned.predict(TEST[0])) == TEST[1].astype(str)).mean() == pytest.approx(
        learned.after.test_accuracy
    )


def test_layers_and_history_are_rows_and_say_what_happened(learned):
    assert [row["layer"] for row in learned.layers][-1] == "classes"
    assert {row["nodes before"] for row in learned.layers} == {8, 3}
    assert [row["stage"] for row in learned.history] == ["learn"] * 4 + ["finetune"] * 4
    assert "taken as new" in learned.notes[0]


def test_the_given_network_stays_as_it_was_and_no_generator_moves():
    given_one = network().train()
    before, state = copy.deepcopy(given_one.state_dict()), torch.get_rng_state()
    learn_structure(given_one, TRAIN, VALIDATION, epochs=2, progress=False, method={"clusters": 2})
    assert all(torch.equal(value, before[name]) for name, value in given_one.state_dict().items())
    assert given_one.training
    assert torch.equal(torch.get_rng_state(), state)


def test_trained_weights_are_recognized_and_kept():
    trained = network()
    optimizer = torch.optim.Adam(trained.parameters(), 0.02)
    images, labels = torch.from_numpy(TRAIN[0])[:, None], torch.from_numpy(TRAIN[1])
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(images), labels).backward()
        optimizer.step()
    found = learn_structure(trained, TRAIN, VALIDATION, target=0.7, epochs=2, progress=False)
    assert found.before.validation_accuracy > 0.9
    assert "taken as trained" in found.notes[0]
    assert found.experiment.method.mask_values == "binary"  # of the preset for weights that are there


def test_what_is_saved_is_read_back_with_any_network_of_the_same_layers(learned, tmp_path):
    folder = learned.save(tmp_path / "saved")
    again = LearnedNetwork.load(folder, Small())
    images = torch.from_numpy(TEST[0])[:, None]
    assert torch.equal(again.model(images), learned.model(images))
    assert (again.before, again.after, again.history) == (learned.before, learned.after, learned.history)
    assert again.architecture.value == learned.architecture.value
    learned.save(folder)  # in place of what is there
    assert sorted(path.name for path in folder.iterdir()) == ["structure.json", "weights.safetensors"]
    with pytest.raises(ValueError, match="must be the one that the structure was learned from"):
        LearnedNetwork.load(folder, Small(width=9))
    with pytest.raises(ValueError, match=r"holds no saved network: there is no structure\.json"):
        LearnedNetwork.load(tmp_path, Small())
    (folder / "structure.json").write_text("{}")
    with pytest.raises(ValueError, match=r"structure\.json is not what was saved: KeyError"):
        LearnedNetwork.load(folder, Small())


def test_images_are_given_to_the_network_as_they_are_unless_normalization_is_asked_for(learned):
    assert learned.model is learned.network
    data = ArrayData(TRAIN, VALIDATION)
    options = {"epochs": 2, "progress": False, "method": {"clusters": 2}}
    stated = learn_structure(network(), data, normalize=([0.4], [0.2]), **options)
    images = torch.from_numpy(TEST[0])[:, None]
    assert torch.allclose(stated.model(images), stated.network((images - 0.4) / 0.2), atol=1e-6)


def test_a_training_without_test_images_takes_none_from_those_to_train_on():
    options = {"normalize": "measured", "pretrained": True}
    found = learn_structure(network(), TRAIN, epochs=2, progress=False, **options)
    assert found.experiment.method.mask_values == "binary"
    assert "pretrained=True" in found.notes[0]
    assert found.preprocessing.mean[0] == pytest.approx(TRAIN[0].mean(), abs=0.02)
    assert found.train_images == 72  # of 90 a fifth is for validation
    assert found.after.test_accuracy is None


def test_a_built_in_backbone_is_named():
    settings = {"name": "convnet", "channels": [6], "hidden": []}
    found = learn_structure(settings, TRAIN, VALIDATION, epochs=2, progress=False, method={"clusters": 2})
    assert found.given_name == "nas_blockout.convnet"
    assert found.after.macs <= 0.5 * found.before.macs


class Branching(nn.Module):
    """Its control flow depends on values."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        return self.fc(x.flatten(1)) if x.sum() > 0 else -self.fc(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (Small(), {"target": 0.0001}, ValueError, "target_macs: .* must be at least"),
        (Small(), {"epochs": 1}, ValueError, "distillation needs at least 2 epochs"),
        (Small(), {"epoch": 2}, TypeError, "takes no 'epoch'"),
        (Small(), {"normalize": "imagenet"}, ValueError, r"normalize must be 'measured' or \(mean, std\)"),
        (nn.Conv2d(3, 3, 1), {}, ValueError, "^the network Conv2d fails on images of 1x6x6 .* let the factory make it"),
        (Branching(), {}, ValueError, "Branching"),
        (lambda x: x, {}, TypeError, "model must be an nn.Module, or a backbone by name or settings, got function"),
        ("resnett", {}, ValueError, "resnet"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_words_of_the_program(model, options, error, message):
    with pytest.raises(error, match=message) as raised:
        learn_structure(model, TRAIN, VALIDATION, **{"epochs": 2, "progress": False, **options})
    assert "given_networks" not in str(raised.value)


def test_floats_of_any_range_are_learned_from_but_not_exported(tmp_path):
    images, labels = TRAIN
    found = learn_structure(network(), ((images - 0.5) * 4, labels), epochs=2, progress=False, method={"clusters": 2})
    with pytest.raises(ValueError, match=r"takes images in \[0, 1\] .* with normalize=\(mean, std\)"):
        found.export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with pytest.raises(DataUnsuitable, match="NaN"):
        learn_structure(network(), (np.full_like(images, np.nan), labels), epochs=2)


def test_an_exported_model_computes_the_same_from_images_in_the_unit_range(learned, tmp_path):
    from nas_blockout.export import ExportedModel

    assert learned.export(tmp_path / "exported").ok
    images = torch.from_numpy(TEST[0])[:, None]
    exported = ExportedModel.open(tmp_path / "exported")
    assert torch.allclose(exported.logits(images), learned.model(images), atol=1e-4)
    assert exported.class_names == ["0", "1", "2"]
    assert exported.json("network.json")["backbone"]["factory"].endswith("test_learning:Small")


def test_a_name_of_a_given_network_is_gone_when_it_is_not_needed_any_more():
    from nas_blockout.interactive import given_networks

    with given(Small()) as factory:
        name = factory.rpartition(":")[2]
        assert isinstance(getattr(given_networks, name)(), Small)
    with pytest.raises(AttributeError, match=name):
        getattr(given_networks, name)


def test_what_notebooks_show_is_escaped_and_has_a_picture(learned):
    pytest.importorskip("matplotlib")
    from dataclasses import replace

    hostile = replace(learned, notes=("<script>alert(1)</script>",), given_name="a.<b>")
    shown = hostile._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<b>&lt;b&gt;: " in shown
    assert learned.architecture._repr_png_().startswith(b"\x89PNG\r\n")
    assert "data:image/png;base64," in learned.architecture._repr_html_()
