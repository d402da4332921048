import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.data.subsets import balanced, stratified

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=80)


@given(label_lists, st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_a_stratified_split_has_every_image_once(labels, seed):
    parts = stratified(torch.tensor(labels), (0.5, 0.2), seed=seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))


@given(st.lists(st.integers(3, 40), min_size=1, max_size=6), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_every_class_has_its_share_in_every_part(counts, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    train, validation, test = stratified(labels, (0.5, 0.2), seed=seed)
    for label, count in enumerate(counts):
        found = [int((labels[part] == label).sum()) for part in (train, validation, test)]
        assert all(number >= 1 for number in found)
        assert abs(found[0] - 0.5 * count) <= 1
        assert abs(found[1] - 0.2 * count) <= 1


def test_a_split_depends_on_its_seed_alone():
    labels = torch.arange(5).repeat(20)
    torch.manual_seed(1)
    first = stratified(labels, (0.5,), seed=3)
    torch.manual_seed(2)
    assert torch.equal(first[0], stratified(labels, (0.5,), seed=3)[0])
    assert not torch.equal(first[0], stratified(labels, (0.5,), seed=4)[0])


@given(label_lists, st.data(), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_subsets_are_nested(labels, data, seed):
    small = data.draw(st.integers(1, len(labels)))
    large = data.draw(st.integers(small, len(labels)))
    chosen = [balanced(torch.tensor(labels), size, seed=seed).tolist() for size in (small, large)]
    assert [len(set(chosen[0])), len(set(chosen[1]))] == [small, large]
    assert set(chosen[0]) <= set(chosen[1])


@given(label_lists, st.data(), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_subsets_are_balanced_while_classes_last(labels, data, seed):
    tensor = torch.tensor(labels)
    size = data.draw(st.integers(1, len(labels)))
    present = tensor.unique()
    taken = tensor[balanced(tensor, size, seed=seed)]
    counts = [int((taken == label).sum()) for label in present]
    for label, count in zip(present, counts, strict=True):
        assert count >= max(counts) - 1 or count == int((tensor == label).sum())
