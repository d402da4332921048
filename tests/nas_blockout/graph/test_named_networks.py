"""Networks that others have written: masked equals branched; `benchmarks/networks.py` has more of them."""

import itertools

import pytest
import torch
from torch.func import functional_call

from nas_blockout.lazy_torchvision import torchvision
from tests.nas_blockout.graph.masked_networks import (
    images,
    masked_network,
    masked_weights,
    prepared,
    random_memberships,
    train_without_drops,
)

SHAPE = (3, 32, 32)


@pytest.mark.slow(20)
@pytest.mark.parametrize(
    ("name", "weights", "layers"),
    [("resnet18", 21, 13), ("mobilenet_v3_small", 54, 28), ("shufflenet_v2_x0_5", 57, 87)],
)
def test_masked_equals_branched_under_raw_memberships(name: str, weights: int, layers: int) -> None:
    torch.manual_seed(0)
    network, analysis = prepared(getattr(torchvision.models, name)(num_classes=10), SHAPE)
    assert (len(analysis.connections), len(analysis.layers), dict(analysis.rigid)) == (weights, layers, {})
    memberships = random_memberships(analysis, 3, itertools.repeat(0.5), seed=0)
    case = masked_network(network, analysis, memberships)
    batch = images(4, shape=SHAPE)
    middle = analysis.layers[layers // 2].name
    rows = memberships[middle].clone()
    node = int(rows.sum(1).argmax())
    rows[node, 0] = 1 - rows[node, 0]
    touching = [each for each in analysis.connections if middle in each.layers]
    other = {**case.state, **masked_weights(touching, {**memberships, middle: rows}, network.state_dict())}
    with torch.no_grad():
        expected, actual = case.logits(batch), case.branched(batch)
        changed = functional_call(network, other, (batch,))
        trained, branched = (train_without_drops(each) for each in (case.network, case.branched))
        in_training, branched_in_training = functional_call(trained, dict(case.state), (batch,)), branched(batch)
    for ours, theirs in ((actual, expected), (branched_in_training, in_training)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * max(1.0, float(theirs.abs().max())))
        assert float(theirs.std(0).max()) > 1e-4
    assert float((changed - actual).abs().max()) > 1e-8  # of one membership of one node
