"""Differentiable search: the mixture against an explicit sum over its choices, whose turn it is, what it expects."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.methods.supernet.darts import Darts, Distributions
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.methods.supernet.hierarchy_choices import HierarchyChoices
from nas_blockout.networks import Branchable, Connection
from nas_blockout.nodes import Nodes
from nas_blockout.settings_fields import Conflict
from nas_blockout.structure.distill import harden, logits_under
from nas_blockout.training.precision import CompiledLoss

CLASSES, PIXELS = 4, 9
SETTINGS = DartsSettings(branches=2, shared=0.25, widths=(0.5, 1.0), temperature=0.7)


class Perceptron(Branchable):
    """Two hidden layers, of 6 and 8 nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(PIXELS, 6), nn.Linear(6, 8), nn.Linear(8, CLASSES)

    @property
    def connections(self) -> tuple[Connection, ...]:
        return (
            Connection.of(self, "fc1.weight", None, "first"),
            Connection.of(self, "fc2.weight", "first", "second"),
            Connection.of(self, "fc3.weight", "second", "classes"),
        )

    def forward(self, x: Tensor, generator: Any = None) -> Tensor:
        logits: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))
        return logits


class Looped(Branchable):
    """A layer that reads itself, filters of each node alone, groups, a layer that stays whole, and image channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.filters = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
        self.again, self.grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.joined, self.fc = nn.Conv2d(5, 3, 1), nn.Linear(3, CLASSES)

    @property
    def connections(self) -> tuple[Connection, ...]:
        with_image = Nodes((("next", 4),), (0, 1, 2, 3, -1))
        return (
            Connection.of(self, "stem.weight", None, "stem", positions=3),
            Connection.of(self, "filters.weight", "stem", "stem", positions=2),
            Connection.of(self, "again.weight", "stem", "stem"),
            Connection.of(self, "grouped.weight", "stem", "next", positions=5),
            Connection.of(self, "joined.weight", with_image, "last"),
            Connection.of(self, "fc.weight", "last", "classes"),
        )

    @property
    def rigid(self) -> dict[str, str]:
        return {"next": "for the test"}

    @property
    def other_macs(self) -> dict[str | None, Tensor]:
        return {"stem": torch.full((4,), 7.0), "next": torch.full((4,), 2.0), None: torch.tensor([11.0])}


def perceptron(settings: DartsSettings = SETTINGS, *, seed: int = 0) -> Darts:
    """A supernet in double precision whose architecture parameters are far from equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Darts(Perceptron().double(), settings).double()
        for logits in (model.class_logits, model.width_logits):
            nn.init.normal_(logits)
    return model


def images(count: int = 5, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Numbers of the nodes of each group, and of those that each width keeps, by hand: of the 8 nodes of a layer that
# branches a quarter is of both branches, and stands last. None stands for both branches.
WHOLE_FIRST = [(None, range(6), (3, 6))]
PARTS_FIRST = [(0, range(2), (1, 2)), (1, range(2, 4), (1, 2)), (None, range(4, 6), (1, 2))]
PARTS_SECOND = [(0, range(3), (2, 3)), (1, range(3, 6), (2, 3)), (None, range(6, 8), (1, 2))]
GROUPS = {1: (WHOLE_FIRST, PARTS_SECOND), 2: (PARTS_FIRST, PARTS_SECOND)}


def branch_of(groups: Any, node: int) -> int | None:
    return next(branch for branch, nodes, _ in groups if node in nodes)


def mixture(model: Darts, x: Tensor, split_layers: int, noise: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The logits as sums over all choices, one node at a time."""
    network, temperature = model.network, model.settings.temperature
    logits = [model.class_logits, model.width_logits]
    if noise is not None:
        logits = [each + added for each, added in zip(logits, noise, strict=True)]
    alpha, beta = (F.softmax(each / temperature, 1) for each in logits)
    first, second = GROUPS[split_layers]
    betas = iter(beta)

    def read(values: Tensor, groups: Any) -> list[Tensor]:
        mixed: dict[int, Tensor] = {}
        for _, nodes, widths in groups:
            weights = next(betas)
            for place, node in enumerate(nodes):
                choices = (
                    weight * (values[:, node] if place < width else 0 * values[:, node])
                    for weight, width in zip(weights, widths, strict=True)
                )
                mixed[node] = sum(choices, torch.zeros(()))
        return [mixed[node] for node in range(values.shape[1])]

    h1 = torch.relu(F.linear(x.flatten(1), network.fc1.weight, network.fc1.bias))
    read1, columns = read(h1, first), []
    for target in range(8):
        total = network.fc2.bias[target].expand(len(x))
        for source in range(6):
            pair = {branch_of(second, target), branch_of(first, source)}
            if None in pair or len(pair) == 1:
                total = total + network.fc2.weight[target, source] * read1[source]
        columns.append(total)
    read2, outputs = read(torch.relu(torch.stack(columns, 1)), second), []
    for label in range(CLASSES):
        total = network.fc3.bias[label].expand(len(x))
        for branch in (0, 1):
            of_branch = [node for node in range(8) if branch_of(second, node) in (branch, None)]
            total = total + alpha[label, branch] * sum(
                network.fc3.weight[label, node] * read2[node] for node in of_branch
            )
        outputs.append(total)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("split_layers", [1, 2])
def test_the_mixture_is_the_sum_over_all_choices_in_value_and_gradient(split_layers: int) -> None:
    model, x = perceptron(replace(SETTINGS, split_layers=split_layers)), images().requires_grad_()
    upstream = torch.randn(5, CLASSES, generator=seeded(), dtype=torch.float64)
    inputs = [x, *model.parameters()]
    for training in (True, False):
        found, expected = model.train(training)(x), mixture(model, x, split_layers)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        ours, theirs = (torch.autograd.grad(each, inputs, upstream) for each in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            assert bool(other.any())


def test_gradients_of_architecture_parameters_equal_finite_differences() -> None:
    model, x, y = perceptron(), images(), torch.tensor([0, 1, 2, 3, 0])
    model.turn = "architecture"
    parameters = [model.class_logits, model.width_logits]
    found = torch.autograd.grad(model.loss(x, y, seeded()), parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        for place in itertools.product(*map(range, parameter.shape)):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[place] += step
                    values.append(float(model.loss(x, y, seeded())))
                    parameter[place] -= step
            assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


def test_gumbel_noise_is_added_in_training_and_only_there() -> None:
    model, x = perceptron(replace(SETTINGS, relaxation="gumbel")), images()
    generator = seeded()
    noise = tuple(
        -(-torch.rand(each.shape, generator=generator, dtype=torch.float64).log()).log()
        for each in (model.class_logits, model.width_logits)
    )
    torch.testing.assert_close(model(x, seeded()), mixture(model, x, 1, noise), rtol=0, atol=1e-12)
    assert torch.equal(model(x, seeded()), model(x, seeded()))
    assert not torch.equal(model(x, seeded()), model(x, seeded(4)))
    with pytest.raises(ValueError, match="Darts needs a generator in training: call"):
        model(x)
    torch.testing.assert_close(model.eval()(x), mixture(model, x, 1), rtol=0, atol=1e-12)


def test_each_step_has_a_gradient_for_the_parameters_whose_turn_it_is() -> None:
    model, x, y = perceptron(replace(SETTINGS, weight_steps=2)), images(), torch.tensor([0, 1, 2, 3, 0])
    architecture = {"class_logits", "width_logits"}
    every = {name for name, _ in model.named_parameters()}
    model.prepare_epoch(0, 4)
    found = []
    for _ in range(6):
        model.zero_grad(set_to_none=True)
        model.loss(x, y, seeded()).backward()
        found.append({name for name, value in model.named_parameters() if value.grad is not None})
        model.after_batch()
    weights = every - architecture
    assert found == [weights, weights, architecture] * 2


def test_batches_whose_gradients_are_averaged_are_of_one_turn() -> None:
    model, found = Darts(Perceptron(), SETTINGS, accumulation=3), []
    model.prepare_epoch(0, 4)
    for _ in range(9):
        found.append(model.turn)
        model.after_batch()
    assert found == ["weights"] * 3 + ["architecture"] * 3 + ["weights"] * 3


def test_an_epoch_begins_with_a_step_of_the_weights_and_one_that_goes_on_where_it_was() -> None:
    model = perceptron()
    model.prepare_epoch(1, 4)
    model.after_batch()
    assert model.turn == "architecture"
    other = perceptron(seed=1)
    other.prepare_epoch(1, 4)
    other.load_state_dict(model.state_dict())
    other.load_epoch_state([])
    assert other.turn == "architecture"
    other.after_batch()
    assert other.turn == "weights"
    model.prepare_epoch(2, 4)
    assert model.turn == "weights"


def test_temperature_and_penalty_follow_the_epochs() -> None:
    settings = DartsSettings(branches=2, temperature=2.0, final_temperature=0.5, cost_warmup=0.5, cost_target=0.1)
    model = perceptron(settings)
    found = []
    for epoch in range(5):
        model.prepare_epoch(epoch, 5)
        with torch.no_grad():
            beyond = float(model.expected_macs(model.distributions())) / model.dense_macs() - 0.1
            found.append((float(model._temperature), float(model.penalty()) / (16 * beyond)))
    assert [each[0] for each in found] == pytest.approx([2, 2**0.5, 1, 0.5**0.5, 0.5])
    assert [each[1] for each in found] == pytest.approx([0, 0.4, 0.8, 1, 1])


def test_a_penalty_above_the_target_charges_nothing_below_it() -> None:
    below = replace(SETTINGS, cost_target=1.0)
    with torch.no_grad():
        assert perceptron(below).penalty() > 0
        assert perceptron(replace(below, cost_penalty_sides="above")).penalty() == 0
        assert perceptron(replace(SETTINGS, cost_penalty=0)).penalty() == 0


def drawn(choices: HierarchyChoices, distributions: Distributions) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """All architectures with their probabilities, and their memberships, from loops over the groups and the classes."""
    *names, classes = choices.layers
    starts = dict(zip(names, itertools.accumulate([0, *(choices.layers[name] for name in names)]), strict=False))
    k = choices.branches
    for widths in itertools.product(range(distributions.widths.shape[1]), repeat=len(choices.groups)):
        rows = {name: torch.zeros(choices.layers[name], k, dtype=torch.bool) for name in names}
        for name in names:
            for node in range(choices.layers[name]):
                group, branch = int(choices.group_of[starts[name] + node]), int(choices.branch_of[starts[name] + node])
                if group < 0 or choices.kept[starts[name] + node, widths[group]]:
                    rows[name][node, slice(k) if branch == k else branch] = True
        of_widths = math.prod(float(distributions.widths[group, width]) for group, width in enumerate(widths))
        for branches in itertools.product(range(k), repeat=choices.layers[classes]):
            of_classes = math.prod(float(distributions.classes[label, b]) for label, b in enumerate(branches))
            yield of_widths * of_classes, {**rows, classes: F.one_hot(torch.tensor(branches), k).bool()}


@pytest.mark.parametrize("split_layers", [1, 2])
@pytest.mark.parametrize("network", [Perceptron, Looped])
def test_expected_macs_are_the_mean_over_all_architectures(network: type[Branchable], split_layers: int) -> None:
    shared = 0.25 if network is Perceptron else 0.34
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Darts(network(), replace(SETTINGS, split_layers=split_layers, shared=shared))
        for logits in (model.class_logits, model.width_logits):
            nn.init.normal_(logits)
    distributions = model.distributions()
    with torch.no_grad():
        expected = sum(p * model.network.macs_under(each) for p, each in drawn(model.choices, distributions))
    found = model.expected_macs(distributions)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    assert all(bool(each.any()) for each in torch.autograd.grad(found, [model.class_logits, model.width_logits]))


def test_decided_choices_are_the_dense_network_under_their_memberships() -> None:
    model, x = perceptron(replace(SETTINGS, split_layers=2)).eval(), images()
    with torch.no_grad():
        model.class_logits.copy_(100 * F.one_hot(torch.tensor([1, 0, 1, 1]), 2))
        model.width_logits.copy_(100 * F.one_hot(torch.tensor([0, 1, 0, 1, 1, 0]), 2))
    memberships = harden(model.memberships(), 0.5)
    kept = {name: value.any(1).tolist() for name, value in memberships.items()}
    assert kept["first"] == [True, False, True, True, True, False]
    assert kept["second"] == [True] * 6 + [True, False]
    assert memberships["classes"].long().argmax(1).tolist() == [1, 0, 1, 1]
    assert memberships["classes"].sum(1).tolist() == [1] * CLASSES
    under = logits_under(model, x, {name: value.double() for name, value in memberships.items()})
    torch.testing.assert_close(model(x), under, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.fold()(x), model(x), rtol=0, atol=1e-12)


def test_a_threshold_keeps_the_widest_choice_that_is_probable_enough() -> None:
    model = perceptron(replace(SETTINGS, widths=(0.25, 0.5, 1.0), shared=0.0, temperature=1.0))
    with torch.no_grad():
        model.width_logits.copy_(torch.tensor([[0.2, 0.5, 0.3]]).log().expand_as(model.width_logits))
    for threshold, nodes in ((0.2, 4), (0.29, 4), (0.31, 2), (0.79, 2), (0.81, 1), (1 - 1e-9, 1)):
        hard = harden(model.memberships(), threshold)
        assert hard["second"].sum(0).tolist() == [nodes, nodes], threshold
        assert hard["classes"].sum(1).tolist() == [1] * CLASSES


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"branches": 5}, "branches must lie in 2..4, the nodes of layer 'classes', got branches=5"),
        ({"branches": 2, "split_layers": 3}, "split_layers must lie in 1..2, got split_layers=3"),
    ],
)
def test_what_a_network_has_no_nodes_or_layers_for_is_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(Conflict, match=rule):
        Darts(Perceptron(), DartsSettings(**settings))


def test_layers_that_all_stay_whole_are_refused() -> None:
    class Whole(Perceptron):
        rigid = {"second": "for the test"}  # noqa: RUF012

    with pytest.raises(Conflict, match="split_layers must reach a layer that can be divided, got split_layers=1"):
        Darts(Whole(), SETTINGS)


@pytest.mark.parametrize("widths", [(0.5, 0.25, 1.0), (0.5, 0.5, 1.0), (0.25, 0.5)])
def test_widths_rise_to_one(widths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"widths must rise to 1, each once, got \[0\."):
        DartsSettings(widths=widths)


@pytest.mark.parametrize("relaxation", ["softmax", "gumbel"])
def test_a_compiled_step_of_the_architecture_is_the_plain_one(relaxation: Any) -> None:
    model = perceptron(replace(SETTINGS, relaxation=relaxation)).float()
    model.turn = "architecture"
    x, y, parameters = images().float(), torch.tensor([0, 1, 2, 3, 0]), [model.class_logits, model.width_logits]
    compiled = CompiledLoss(model, torch.device("cpu"), "float32", backend="eager", fullgraph=True)
    ours, theirs = compiled(x, y, seeded()), model.loss(x, y, seeded())
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(each, parameters) for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


def test_telemetry_says_what_is_expected() -> None:
    model = perceptron()
    with torch.no_grad():
        model.class_logits.zero_()
        model.width_logits.zero_()
    found = model.telemetry()
    assert found["darts/entropy/classes"] == found["darts/entropy/widths"] == pytest.approx(1)
    assert found["darts/classes_of_branches"] == pytest.approx([2, 2])
    assert found["darts/width/first"] == pytest.approx((3 + 6) / 2 / 6)
    assert found["darts/temperature"] == 0.7
