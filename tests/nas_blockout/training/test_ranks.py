"""Several processes that train one model: the numbers of one process, a common end, and no waiting for the dead."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_blockout.experiment import Snapshot
from nas_blockout.methods.random_masks import keep_mask
from nas_blockout.randomness.batch_shards import ShardGenerator, shard_of
from nas_blockout.training import EpochRecord, RankGroup
from tests.nas_blockout.training.shared_trainings import (
    CASES,
    Kept,
    RankProcess,
    doubled,
    finding,
    run_text,
    start_ranks,
    train_cases,
    trained,
)
from tests.once import once

WITHIN = ("blockdrop", "dropcluster", "two stages", "recipes")  # gone on with inside an epoch
FEW = ("few rows", "few rows blockdrop")
SECONDS = 240  # for processes that share a busy machine; none of these tests waits on purpose


def outputs(ranks: list[RankProcess]) -> tuple[list[str], list[int | None]]:
    """What processes wrote, and how they ended, once all have; none outlives the test."""
    try:
        return [rank.text(seconds=SECONDS) for rank in ranks], [rank.process.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            rank.process.kill()


def run_ranks(size: int, folder: Path, cases: tuple[str, ...]) -> None:
    texts, codes = outputs(start_ranks(size, train_cases, folder, cases))
    assert codes == [0] * size, "\n".join(texts)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "trained-by-two", lambda folder: run_ranks(2, folder, tuple(CASES)))


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "trained-by-three", lambda folder: run_ranks(3, folder, FEW))


def found(folder: Path, case: str, rank: int) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(folder / f"{case}.{rank}", weights_only=True)
    return result


def records(finding: dict[str, Any]) -> list[EpochRecord]:
    return [EpochRecord(**record) for record in json.loads(finding["records"])]


def numbers(record: EpochRecord) -> dict[str, Any]:
    """A record without what depends on time."""
    values = {name: value for name, value in (record.to_json() | record.telemetry).items() if _is_number(name, value)}
    return {name: torch.tensor(value) for name, value in values.items()}


def _is_number(name: str, value: object) -> bool:
    return isinstance(value, int | float | list) and name != "seconds" and "clustering_share" not in name


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Compare two findings up to the order of summation in float64."""
    for one, other in zip(records(first), records(second), strict=True):
        torch.testing.assert_close(numbers(one), numbers(other), rtol=1e-6, atol=1e-7)
    for part in ("model", "optimizer"):
        torch.testing.assert_close(
            first["state"]["checkpoint"][part], second["state"]["checkpoint"][part], rtol=1e-6, atol=1e-7
        )
    torch.testing.assert_close(first["outcome"], second["outcome"], rtol=1e-6, atol=1e-7)
    assert first["teacher_passes"] == second["teacher_passes"]
    assert torch.equal(first["state"]["checkpoint"]["generator"], second["state"]["checkpoint"]["generator"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_numbers_of_one_process(case: str, of_two: Path) -> None:
    with doubled():
        alone = finding(*trained(CASES[case]))
    assert_equal(found(of_two, case, 0), alone)


@pytest.mark.parametrize("case", FEW)
def test_a_batch_may_have_fewer_images_than_there_are_ranks(case: str, of_three: Path) -> None:
    with doubled():
        alone = finding(*trained(CASES[case]))
    assert_equal(found(of_three, case, 0), alone)


@pytest.mark.parametrize("case", CASES)
def test_ranks_end_with_the_same_parameters_and_only_the_first_with_a_result(case: str, of_two: Path) -> None:
    first, second = found(of_two, case, 0), found(of_two, case, 1)
    model = first["state"]["checkpoint"]["model"]
    assert all(torch.equal(value, second["state"]["checkpoint"]["model"][name]) for name, value in model.items())
    assert first["outcome"] is not None
    assert second["outcome"] is None


def state_within(folder: Path, case: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / f"{case}.within", weights_only=True)
    assert len(state["checkpoint"]["progress"]["losses"]) == 2
    return state


@pytest.fixture(scope="module")
def going_on(tmp_path_factory: pytest.TempPathFactory, of_two: Path) -> Path:
    """Two ranks go on with what one process began, after an epoch or inside one, and with what two ranks began."""

    def make(folder: Path) -> None:
        with doubled():
            for epochs in (1, 2):
                _, begun = trained(CASES["two stages"], epochs=epochs)
                torch.save(begun.to_state(), folder / f"two stages@{epochs}.start")
            for case in WITHIN:
                torch.save(state_within(of_two, case), folder / f"{case}@ranks.start")
                trained(CASES[case], saving=(kept := Kept()).saving)
                (folder / f"{case}@one.start").write_bytes(kept.files[len(kept.files) // 3])
        names = [f"{case}@{begun}" for case in WITHIN for begun in ("ranks", "one")]
        run_ranks(2, folder, ("two stages@1", "two stages@2", *names))

    return once(tmp_path_factory, "gone-on-with-by-two", make)


@pytest.mark.parametrize("epochs", [1, 2])
def test_ranks_go_on_with_what_one_process_began(epochs: int, going_on: Path) -> None:
    with doubled():
        straight = finding(*trained(CASES["two stages"]))
    assert_equal(found(going_on, f"two stages@{epochs}", 0), straight)


@pytest.mark.parametrize("case", WITHIN)
def test_ranks_go_on_inside_an_epoch_with_the_numbers_of_ranks_that_never_stopped(
    case: str, of_two: Path, going_on: Path
) -> None:
    straight, resumed = found(of_two, case, 0), found(going_on, f"{case}@ranks", 0)
    for one, other in zip(records(straight), records(resumed), strict=True):
        torch.testing.assert_close(numbers(one), numbers(other), rtol=0, atol=0)
    torch.testing.assert_close(straight["outcome"], resumed["outcome"], rtol=0, atol=0)


@pytest.mark.parametrize("case", WITHIN)
def test_one_process_goes_on_inside_an_epoch_of_two_ranks_and_they_inside_one_of_it(
    case: str, of_two: Path, going_on: Path
) -> None:
    start = Snapshot.from_state(state_within(of_two, case))
    with doubled():
        straight, alone = finding(*trained(CASES[case])), finding(*trained(CASES[case], start=start))
    assert_equal(alone, straight)
    assert_equal(found(going_on, f"{case}@one", 0), straight)


BEHAVIOR = """
import os, signal, sys, time, torch
from nas_blockout.training import RankGroup, RanksEndedError
ranks = RankGroup.from_environment(os.environ, timeout_seconds=60 if sys.argv[1] != "pauses" else 3)
ranks.total(torch.ones(1))
dies, closes, pauses = (sys.argv[1] == word for word in ("dies", "closes", "pauses"))
if dies and ranks.rank == int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)
if closes and ranks.leads:
    ranks.close()
    sys.exit()
if pauses and ranks.leads:
    time.sleep(8)
try:
    ranks.await_first()
    print("sum", int(ranks.total(torch.ones(1))))
except RanksEndedError as error:
    print("ended:", error)
except RuntimeError as error:
    print("failed:", type(error).__name__)
"""


def behavior(*arguments: str) -> tuple[list[str], list[int | None]]:
    return outputs(start_ranks(2, run_text, BEHAVIOR, *arguments))


def test_the_others_wait_between_epochs_for_as_long_as_the_first_rank_pauses() -> None:
    texts, codes = behavior("pauses")
    assert codes == [0, 0], texts
    assert ["sum 2" in text for text in texts] == [True, True], texts


def test_the_first_rank_ends_the_training_of_the_others() -> None:
    texts, codes = behavior("closes")
    assert codes == [0, 0], texts
    assert "ended: the first rank has ended the training" in texts[1]


def test_a_rank_that_dies_is_an_error_of_the_first_one_and_no_wait() -> None:
    texts, codes = behavior("dies", "1")
    assert codes[1] == -signal.SIGKILL
    assert "failed: " in texts[0], texts


def test_the_others_end_when_the_first_rank_dies() -> None:
    texts, codes = behavior("dies", "0")
    assert codes[0] == -signal.SIGKILL
    assert "ended: the first rank is gone" in texts[1], texts


FAILING = """
import json, os, sys, torch
from torch import nn
from torch.distributed import PrefixStore, TCPStore
from nas_blockout.data import Loader, Part
from nas_blockout.training import Loaders, RankGroup, TrainingSettings, fit
from nas_blockout.training_protocol import TrainableModel

class FailsAlone(TrainableModel):
    def __init__(self, fails, how):
        super().__init__()
        self.stem, self.norm, self.out = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 10)
        self.fails, self.how, self.steps = fails, how, 0

    def forward(self, x, generator=None):
        return self.out(self.norm(self.stem(x)).flatten(1))

    def loss(self, x, y, generator):
        self.steps += 1
        if self.fails and self.steps == 2:
            if self.how == "diverges":
                nn.init.constant_(self.out.bias, float("nan"))
            raise ValueError("of this rank alone")
        return super().loss(x, y, generator)

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
store = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), 2, rank == 0, wait_for_workers=False)
part = Part(torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10)
loaders, found = Loaders(Loader(part, 4), Loader(part, 4)), {}
for case in sys.argv[1:]:
    how, failing = case.split()
    ranks = RankGroup(rank, 2, store=PrefixStore(case, store))
    model = FailsAlone(rank == int(failing), how)
    try:
        records = list(fit(model, loaders, TrainingSettings(epochs=2, batch_size=4), seed=0, ranks=ranks))
        found[case] = [[record.failure, record.sample_passes] for record in records]
    except (RuntimeError, ValueError) as error:
        found[case] = f"{type(error).__name__}: {error}"
    ranks.close()
print(json.dumps(found))
if rank:
    store.set("ended", "")
else:
    store.wait(["ended"])  # the store is this process, which the other one needs to its end
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found where one of them fails alone."""
    cases = [f"{how} {rank}" for how in ("raises", "diverges") for rank in (0, 1)]

    def make(folder: Path) -> None:
        texts, _ = outputs(start_ranks(2, run_text, FAILING, *cases))
        (folder / "found.json").write_text("[" + ", ".join(text.splitlines()[-1] for text in texts) + "]")

    found: list[dict[str, Any]] = json.loads((once(tmp_path_factory, "failing", make) / "found.json").read_text())
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_learn_the_reason_of_a_rank_that_fails_alone(rank: int, failing: list[dict[str, Any]]) -> None:
    assert failing[rank][f"raises {rank}"] == "ValueError: of this rank alone"
    assert failing[1 - rank][f"raises {rank}"] == f"RankFailedError: rank {rank} failed: ValueError: of this rank alone"


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_rank_diverges_all_end_with_its_record(rank: int, failing: list[dict[str, Any]]) -> None:
    assert [each[f"diverges {rank}"] for each in failing] == 2 * [[["the training loss became nan in epoch 0", 8]]]


def test_ranks_without_their_variables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"missing WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start by torchrun"):
        RankGroup.from_environment({"RANK": "0"})


@given(whole=st.integers(1, 70), size=st.integers(1, 9))
def test_shards_are_all_rows_once_and_as_even_as_can_be(whole: int, size: int) -> None:
    shards = [shard_of(whole, rank=rank, size=size) for rank in range(size)]
    counted = [shard for shard in shards if shard.counted]
    rows = torch.arange(whole)
    assert torch.equal(torch.cat([shard.of(rows) for shard in counted]), rows)
    assert max(shard.rows for shard in counted) - min(shard.rows for shard in counted) <= 1
    assert sum(shard.weight for shard in shards) == pytest.approx(1)
    assert all(len(shard.of(rows)) == shard.rows >= 1 for shard in shards)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mask_of_some_rows_is_a_part_of_the_mask_of_all(layout: torch.memory_format) -> None:
    whole = torch.empty(7, 4, 5, 5).to(memory_format=layout)
    expected = keep_mask(whole, 0.4, torch.Generator().manual_seed(3))
    for rank in range(3):
        generator = ShardGenerator().manual_seed(3)
        assert isinstance(generator, ShardGenerator)
        generator.shard = shard_of(7, rank=rank, size=3)
        mask = keep_mask(generator.shard.of(whole), 0.4, generator)
        assert torch.equal(mask, generator.shard.of(expected))
        assert mask.is_contiguous(memory_format=layout)
