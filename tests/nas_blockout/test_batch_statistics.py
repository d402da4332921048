"""Statistics of batch normalization are those of the network that is evaluated, whatever training drew."""

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.batch_statistics import (
    estimate_statistics,
    estimated_statistics,
    normalizations,
    statistics_images,
    statistics_passes,
)


class Halved(nn.Module):
    """In training its second normalization reads half of what it reads in eval; a third is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unreached = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.relu(self.first(x))
        return self.second(hidden * (0.5 if self.training else 1.0))  # type: ignore[no-any-return]


def images(count: int = 64, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_the_statistics_are_those_of_what_eval_computes() -> None:
    model, x = Halved().train(), images()
    model.unreached.running_mean.fill_(7)
    estimate_statistics(model, [x])
    hidden = torch.relu((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(model.first.running_mean, x.mean(0))
    torch.testing.assert_close(model.first.running_var, x.var(0))
    torch.testing.assert_close(model.second.running_mean, hidden.mean(0))
    torch.testing.assert_close(model.second.running_var, hidden.var(0))
    assert model.unreached.running_mean.tolist() == [7, 7, 7]


def test_several_batches_are_averaged_and_a_batch_of_one_is_passed_over() -> None:
    norm, x = nn.BatchNorm1d(3), images(33)
    estimate_statistics(norm, x.split(16))
    torch.testing.assert_close(norm.running_mean, x[:32].mean(0))
    torch.testing.assert_close(norm.running_var, (x[:16].var(0) + x[16:32].var(0)) / 2)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(training: bool) -> None:
    model = Halved().train(training)
    model.frozen.eval()  # a module may have a mode of its own
    model.second.num_batches_tracked.fill_(5)
    weights = [parameter.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    estimate_statistics(model, [images()])
    assert [module.training for module in model.modules()] == modes
    assert all(norm.momentum == 0.1 for norm in normalizations(model))
    assert int(model.second.num_batches_tracked) == 5
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))


def test_without_images_the_statistics_stay() -> None:
    model = Halved()
    model.first.running_mean.fill_(7)
    estimate_statistics(model, [])
    estimate_statistics(model, [images(1)])
    assert model.first.running_mean.tolist() == [7, 7, 7]


def test_an_error_leaves_modes_and_statistics() -> None:
    model = Halved().train()

    def broken(x: Tensor) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        estimate_statistics(model, [images()], broken)
    assert model.first.running_mean.tolist() == [0, 0, 0]
    assert all(module.training for module in model.modules())


def test_statistics_are_lent_to_an_evaluation() -> None:
    model, x = Halved().eval(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with estimated_statistics(model, [x], lambda batch: model(batch + 1)):
        torch.testing.assert_close(model.first.running_mean, (x + 1).mean(0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_last_epoch_has_half_of_the_images_and_an_epoch_a_thousand_on_average() -> None:
    assert [statistics_images(epoch, 6) for epoch in range(6)] == [500] * 5 + [3500]
    assert all(sum(statistics_images(epoch, n) for epoch in range(n)) == 1000 * n for n in range(1, 10))
    assert statistics_images(99, 100) == 5000


def test_an_estimate_is_charged_a_third_of_its_images() -> None:
    assert [statistics_passes(images) for images in (1, 100, 150, 3000)] == [1, 34, 50, 1000]
