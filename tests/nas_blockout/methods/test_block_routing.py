import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.methods.paths.block_routes import (
    FEWEST_IMAGES,
    compacted_route,
    grouped_route,
    masked_route,
    norms_of,
    static_route,
    statistics_kept,
    training_route,
    uncompacted_route,
)
from nas_blockout.methods.paths.block_routing import (
    BlockFlops,
    PolicyNetwork,
    StaticPolicy,
    block_flops,
    network_flops,
    operations,
    path_of_cost,
    path_statistics,
    policy_size,
)

SKIPPING = (compacted_route, grouped_route)


def network(depth: int = 14, **settings_) -> ResNet:
    torch.manual_seed(0)
    built = ResNet(ResNetSettings(depth=depth, width=0.25, **settings_), (2, 8, 8), 5).double()
    generator = torch.Generator().manual_seed(1)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales as a trained network has them
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return built.eval()


NETWORKS = {shortcut: network(shortcut=shortcut) for shortcut in ("pad", "projection")}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paths(count: int, blocks: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(count, blocks, generator=torch.Generator().manual_seed(seed)) < share


def one_by_one(built: ResNet, x: Tensor, keep: Tensor) -> Tensor:
    """The slow oracle: one image at a time, one block at a time, as the paper draws it."""
    logits = []
    for image, path in zip(x, keep.tolist(), strict=True):
        h = built.stem(image[None])
        for block, kept in zip(built.blocks, path, strict=True):
            shortcut = block.shortcut(h)
            h = torch.relu(shortcut + block.residual(h)) if kept else shortcut
        logits.append(built.head(h))
    return torch.cat(logits)


@given(
    shortcut=st.sampled_from(sorted(NETWORKS)),
    batch=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    seed=st.integers(0, 1000),
    gradient=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_route_equals_one_image_at_a_time(shortcut, batch, share, seed, gradient):
    built = NETWORKS[shortcut]
    x, keep = images(batch, seed), paths(batch, 6, share, seed)
    with torch.set_grad_enabled(gradient):
        expected = one_by_one(built, x, keep)
        for route in (masked_route, *SKIPPING):
            torch.testing.assert_close(route(built, x, keep), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("route", SKIPPING)
def test_float32_skipping_equals_masking_within_the_promised_bound(route):
    built = copy.deepcopy(NETWORKS["pad"]).float()
    x, keep = images(64).float(), paths(64, 6)
    with torch.no_grad():
        torch.testing.assert_close(route(built, x, keep), masked_route(built, x, keep), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("route", SKIPPING)
def test_gradients_equal_those_of_masking(route):
    built, x, keep = copy.deepcopy(NETWORKS["projection"]), images(7), paths(7, 6)
    found = []
    for each in (route, masked_route):
        built.zero_grad()
        each(built, x, keep).square().sum().backward()
        found.append([p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in built.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", [masked_route, *SKIPPING])
def test_keeping_all_blocks_is_the_plain_network(route):
    built, x = NETWORKS["pad"], images(5)
    everything = torch.ones(5, 6, dtype=torch.bool)
    torch.testing.assert_close(route(built, x, everything), built(x), rtol=1e-12, atol=1e-12)


class Bare(nn.Module):
    """Another network of the same structure, without a stem: its first shortcut is the image itself."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut = nn.Identity()
            self.branch = nn.Conv2d(2, 2, 3, padding=1)

        def complete(self, x: Tensor, shortcut: Tensor) -> Tensor:
            return shortcut + self.branch(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def head(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("route", SKIPPING)
def test_images_are_left_as_they_were(route):
    torch.manual_seed(0)
    built, x, keep = Bare().double(), images(6), paths(6, 3)
    before = x.clone()
    with torch.no_grad():
        found = route(built, x, keep)
        assert torch.equal(x, before)
        torch.testing.assert_close(found, masked_route(built, x, keep))


@pytest.mark.parametrize("route", SKIPPING)
def test_what_is_dropped_is_not_computed(route):
    built, keep = NETWORKS["projection"], paths(16, 6)
    flops = block_flops(built, lambda x: x.mean((1, 2, 3)), images(1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        route(built, images(16), keep)
    assert counter.get_total_flops() == int(flops.of(keep).sum())
    assert 0 < counter.get_total_flops() < 16 * flops.full


def test_flops_of_resnet_110_are_those_of_the_paper():
    built = ResNet(ResNetSettings(depth=110), (3, 32, 32), 10).eval()
    flops = block_flops(built, lambda x: x.mean((1, 2, 3)), torch.zeros(1, 3, 32, 32))
    assert len(flops.blocks) == 54
    assert flops.full / 1e8 == pytest.approx(5.06, abs=0.02)
    assert flops.policy == 0


def test_flops_of_paths_add_up_by_hand():
    flops = BlockFlops(policy=5, fixed=100, blocks=(10, 20, 30))
    keep = torch.tensor([[True, False, True], [False, False, False]])
    assert flops.of(keep).tolist() == [145.0, 105.0]
    assert flops.full == 160


def test_statistics_of_paths_by_hand():
    keep = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1]]).bool()
    found = path_statistics(keep)
    assert (found.mean, found.distinct) == (1.75, 3)  # 2, 2, 1, 2 blocks
    assert found.sd == pytest.approx(0.1875**0.5)


def _norm_of(built: ResNet, block: int) -> nn.BatchNorm2d:
    norm = built.blocks[block].residual[1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def test_training_takes_a_blocks_statistics_from_the_images_that_keep_it():
    built = copy.deepcopy(NETWORKS["pad"]).train()
    x, keep = images(24), torch.ones(24, 6, dtype=torch.bool)
    keep[10:, 0] = False
    before = _norm_of(built, 0).running_mean.clone()
    with torch.no_grad():
        seen = built.blocks[0].residual[0](copy.deepcopy(built).stem(x)[:10])  # all 24 pass the stem
        compacted_route(built, x, keep)
    expected = 0.9 * before + 0.1 * seen.mean((0, 2, 3))
    torch.testing.assert_close(_norm_of(built, 0).running_mean, expected)


def test_training_normalizes_few_images_by_the_running_statistics():
    built = copy.deepcopy(NETWORKS["pad"]).train()
    keep = torch.ones(24, 6, dtype=torch.bool)
    keep[FEWEST_IMAGES - 1 :, 0] = False
    norms = [_norm_of(built, 0), _norm_of(built, 1)]
    before = [norm.running_mean.clone() for norm in norms]
    compacted_route(built, images(24), keep)
    assert torch.equal(norms[0].running_mean, before[0])
    assert not torch.equal(norms[1].running_mean, before[1])
    assert all(norm.training for norm in norms)


def test_statistics_can_be_kept_while_training_normalizes_by_the_batch():
    built = copy.deepcopy(NETWORKS["pad"]).train()
    plain = copy.deepcopy(built)
    before = _norm_of(built, 0).running_mean.clone()
    with statistics_kept(built):
        logits = built(images(9))
    torch.testing.assert_close(logits, plain(images(9)))
    assert torch.equal(_norm_of(built, 0).running_mean, before)
    assert _norm_of(built, 0).momentum == 0.1


# Statistics that are estimated anew: the network is in eval mode, its batch normalization alone in train mode


def estimating(built: ResNet) -> ResNet:
    twin = copy.deepcopy(built).eval()
    for norm in norms_of(twin):
        norm.train()
    return twin


def statistics_of(block: nn.Module) -> list[Tensor]:
    return [norm.running_mean.clone() for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)]


def test_a_block_that_fewer_than_two_images_enter_keeps_its_statistics():
    built, x = estimating(NETWORKS["pad"]), images(6)
    keep = torch.zeros(6, 6, dtype=torch.bool)
    for block, entering in enumerate([6, 0, 1, 2, 5, 1]):
        keep[:entering, block] = True
    before = [statistics_of(block) for block in built.blocks]
    compacted_route(built, x, keep, estimating=True)
    moved = [
        [not torch.equal(ours, theirs) for ours, theirs in zip(statistics_of(block), old, strict=True)]
        for block, old in zip(built.blocks, before, strict=True)
    ]
    assert moved == [[entering >= 2] * 2 for entering in [6, 0, 1, 2, 5, 1]]
    assert all(norm.training for norm in norms_of(built))  # as it was


def test_estimated_statistics_are_those_of_the_images_that_enter():
    built, x = estimating(NETWORKS["projection"]), images(8)
    keep = paths(8, 6, 0.6)
    assert keep.sum(0).min() >= 2
    oracle = copy.deepcopy(built)
    compacted_route(built, x, keep, estimating=True)
    h = oracle.stem(x)
    for block, column in zip(oracle.blocks, keep.unbind(1), strict=True):
        shortcut = block.shortcut(h)
        h = shortcut.index_copy(0, column.nonzero().squeeze(1), block.complete(h[column], shortcut[column]))
    torch.testing.assert_close(built.state_dict(), oracle.state_dict())


def test_a_single_image_on_a_map_of_one_position_does_no_harm():
    built = estimating(NETWORKS["pad"])
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)  # the last stage has one position
    keep = torch.ones(3, 6, dtype=torch.bool)
    keep[1:, 4:] = False
    assert compacted_route(built, x, keep, estimating=True).isfinite().all()


# What decides: policies and their cost

COSTS = (4, 4, 3, 4, 4, 3, 4)


@pytest.mark.parametrize(
    ("policy", "budget", "path"),
    [
        ("first", 8, [1, 1, 0, 0, 0, 0, 0]),
        ("first", 9.4, [1, 1, 0, 0, 0, 0, 0]),  # 8 is nearer than 11
        ("first", 9.6, [1, 1, 1, 0, 0, 0, 0]),
        ("first", 0, [1, 0, 0, 0, 0, 0, 0]),
        ("spread", 3, [0, 0, 0, 1, 0, 0, 0]),
        ("spread", 26, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_paths_of_a_cost_by_hand(policy, budget, path):
    assert path_of_cost(policy, COSTS, budget).int().tolist() == path


@given(st.integers(0, 30), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_a_random_path_comes_as_near_to_a_cost_as_any_number_of_blocks_and_follows_its_seed(budget, seed):
    path = path_of_cost("random", COSTS, budget, seed=seed)
    assert torch.equal(path, path_of_cost("random", COSTS, budget, seed=seed))
    assert abs(float(path.double() @ torch.tensor(COSTS).double()) - min(max(budget, 3), 26)) <= 2


@given(st.floats(0, 30), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_static_policy_with_a_budget_keeps_its_likeliest_blocks(budget, seed):
    logits = torch.randn(7, generator=torch.Generator().manual_seed(seed)) - 2
    policy = StaticPolicy(logits, learned=True, costs=COSTS, budget=budget)
    scores = policy(torch.zeros(3, 1, 1, 1))
    keep = scores[0] >= 0
    assert torch.equal(keep.expand(3, -1), scores >= 0)
    torch.testing.assert_close(scores[0] - scores[0, 0], logits - logits[0])  # shifted alike
    assert logits[keep].min() > logits[~keep].max() if not keep.all() else keep.any()
    ranked = torch.tensor(COSTS)[logits.argsort(descending=True)].cumsum(0)
    assert abs(int(torch.tensor(COSTS)[keep].sum()) - budget) == pytest.approx(
        float((ranked.double() - budget).abs().min())
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)])
@pytest.mark.parametrize("depth", [8, 32, 50])
def test_the_policy_network_is_sized_to_its_backbone(shape, depth):
    stem = "imagenet" if shape[1] > 64 else "small"
    built = ResNet(ResNetSettings(depth=depth, width=0.5, stem=stem), shape, 10)
    full = network_flops(built, shape).full
    widths, pool = policy_size((None, None), shape, len(built.blocks), most=0.05 * full)
    policy = PolicyNetwork(shape[0], len(built.blocks), widths=widths, pool=pool)
    assert operations(policy, shape) <= 0.05 * full or widths == (1, 2, 4)
    assert pool == 1 or shape[1] // pool >= 12
    assert policy(torch.zeros(2, *shape)).shape == (2, len(built.blocks))


def test_what_is_given_of_a_policys_size_is_kept():
    assert policy_size(((5,), 3), (1, 8, 8), 4, most=0) == ((5,), 3)
    assert policy_size(((5,), None), (1, 32, 32), 4, most=0) == ((5,), 2)
    assert policy_size((None, 4), (1, 32, 32), 4, most=1e12) == ((16, 32, 64), 4)
    assert policy_size((None, None), (1, 32, 32), 4, most=1e12) == ((16, 32, 64), 1)


def test_a_network_is_counted_without_being_touched():
    built = network().train()
    counted, by_hand = network_flops(built, (2, 8, 8)), block_flops(built.eval(), nn.Identity(), images(1))
    assert counted == by_hand
    built.train()
    state = copy.deepcopy(built.state_dict())
    network_flops(built, (2, 8, 8))
    assert built.training
    torch.testing.assert_close(built.state_dict(), state, rtol=0, atol=0)


def trained_once(route, keep, x, *, estimating=False):
    """Logits, state and gradients after a training step, or while statistics are estimated anew."""
    built = network().train(not estimating)
    for norm in norms_of(built):
        norm.train()
    logits = route(built, x, keep, estimating=True) if estimating else route(built, x, keep)
    logits.square().sum().backward()
    state = {name: value for name, value in built.state_dict().items() if "num_batches" not in name}
    gradients = {name: torch.zeros(1) if p.grad is None else p.grad for name, p in built.named_parameters()}
    return logits.detach(), state, {name: value for name, value in gradients.items() if value.any()}


@pytest.mark.parametrize("estimating", [False, True])
def test_running_every_block_on_every_image_trains_as_running_it_on_those_that_keep_it(estimating):
    x, keep = images(24), paths(24, 6)
    keep[:, 1] = False
    keep[:3, 2] = torch.tensor(True)
    keep[3:, 2] = False  # fewer than eight: normalized by the running statistics in training
    found = trained_once(uncompacted_route, keep, x, estimating=estimating)
    expected = trained_once(compacted_route, keep, x, estimating=estimating)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [5, 9])
def test_a_path_that_is_known_beforehand_trains_as_it_does_given_for_every_image(batch):
    x, path = images(batch), (True, False, True, True, False, True)
    keep = torch.tensor(path).expand(batch, -1)
    found = trained_once(lambda built, images, _: static_route(built, images, path), keep, x)
    torch.testing.assert_close(found, trained_once(compacted_route, keep, x), rtol=0, atol=0)


def test_off_the_processor_a_training_step_reads_nothing():
    built = network().to("meta").train()
    logits = training_route(built, images(9).to("meta"), paths(9, 6).to("meta"))
    logits.sum().backward()  # on this device a value that is read is an error
    assert logits.shape == (9, 5)
