"""The processes that train one model together, called ranks: what they share, and how they wait for one another.

Every rank runs the same training and computes its rows of every batch. Gradients are summed, so all ranks take the same
steps, and the numbers are those of one process up to the order of summation, however many ranks there are.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from nas_blockout.randomness.batch_shards import Shard, ShardGenerator, shard_of
from nas_blockout.settings_fields import Conflict
from nas_blockout.training.rank_errors import RankFailedError, RanksEndedError
from nas_blockout.training.step import DivergedError, Step
from nas_blockout.training.synchronized_norms import SharedBatch, synchronized
from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import TrainableLayer

TIMEOUT_SECONDS = 600.0  # how long a rank waits for another one inside a step
_LOOK_SECONDS = 5.0  # how often a waiting rank looks whether the first one still lives
_BUCKET_NUMBERS = 2**23  # gradients summed at once: 32 MiB in float32
_Signal = Literal["go", "stop"]
_FAILURE, _FAILED, _DIVERGED = "failure", "failed", "diverged"  # a key of the store, and how what it holds begins


def indivisible(settings: TrainingSettings) -> Conflict | None:
    """Return what keeps several ranks from training with the numbers of one process, None if nothing does.

    Args:
        settings: How to train.
    """
    if settings.class_weights != "none":
        # The mean over a batch is then weighted by its labels, of which a rank knows its own.
        return Conflict(
            "training.class_weights: must be none where several ranks train a trial, "
            f"got {settings.class_weights}; balance the sampling, or use one rank",
            "training.class_weights",
        )
    if settings.compile:  # a compiled step cannot wait for other ranks inside its normalization
        return Conflict(
            "training.compile: must be false where several ranks train a trial, got true; use one rank",
            "training.compile",
        )
    return None


class Ranks:
    """One process by itself: the first and only rank."""

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first rank, which decides, reports and writes."""
        return self.rank == 0

    def generator(self, device: str | torch.device) -> torch.Generator:
        """Return the generator of the draws of a model on a device."""
        return torch.Generator(device)

    def join(self, step: Step) -> None:
        """Let the ranks compute their rows in every step, and sum the gradients before the update.

        Raises:
            ValueError: The settings of the training ask for what ranks cannot share.
        """

    def training(self, model: nn.Module) -> AbstractContextManager[None]:
        """Train within: normalization is by the whole batch."""
        return nullcontext()

    def rows(self, images: int) -> slice:
        """Return which images of a batch this rank evaluates; may be none."""
        return slice(images)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, the same on all of them."""
        return values

    def share(self, *modules: nn.Module) -> None:
        """Give all ranks the parameters and buffers of the first one."""

    def agree(self, make: Callable[[], Any]) -> Any:
        """Return on all ranks what the first one makes, while the others wait however long it takes.

        Args:
            make: Called on the first rank alone. Its result consists of plain types and tensors.
        """
        return make()

    def gather(self, values: Any) -> list[Any]:
        """Return what every rank has, in their order; plain types and tensors."""
        return [values]

    def gather_counts(self, layers: Iterable[TrainableLayer]) -> None:
        """Let layers add up what each rank has counted in an epoch."""

    def await_first(self) -> None:
        """Wait until the first rank comes here too; it may pause before for as long as it likes.

        Raises:
            RanksEndedError: It has ended the training instead.
        """

    def fail(self, error: Exception) -> None:
        """Leave, as this rank cannot go on: the others find out, and why, where they next wait for it or do so now."""

    def close(self) -> None:
        """Leave; the first rank ends the training of the others, who find out where they next wait for it."""


ALONE = Ranks()


class RankGroup(Ranks):
    """Several processes, connected.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes, 2 or more.
        store: Reached by all of them; the first one serves it.
        device: Where this one trains: NCCL connects CUDA devices, gloo all others.
        timeout_seconds: How long to wait for another rank inside a step before the training fails.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        store: Store,
        device: str | torch.device = "cpu",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._waits, self._open = store, 0, True
        self._shard: Shard | None = None
        self._batch = SharedBatch(rank, size, self.total)
        # Whoever imports this while there is a group, as the optimizer does, makes the group a default of functions, so
        # that it would never end, nor would its connections.
        import_module("torch.distributed.nn.functional")
        # What is decided on the host goes by gloo, so that nobody waits for a device to learn it.
        backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds)
        )

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        *,
        device: str | torch.device = "cpu",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> "RankGroup":
        """Return the ranks that ``torchrun`` started: of `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`.

        Args:
            environment: Variables of this process, `os.environ`.
            device: Where this one trains.
            timeout_seconds: How long to wait for another rank inside a step before the training fails.

        Raises:
            ValueError: A variable is missing or no whole number.
        """
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in names if name not in environment]:
            raise ValueError(f"torchrun sets {', '.join(names)}, missing {', '.join(missing)}: start by torchrun")
        rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        # The agent of torchrun may serve a store at that port already.
        serves = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = TCPStore(environment["MASTER_ADDR"], port, size, serves)
        shared = PrefixStore("nas_blockout", store)
        return cls(rank, size, store=shared, device=device, timeout_seconds=timeout_seconds)

    @classmethod
    def served(cls, address: str, size: int) -> tuple[str, int, Store]:
        """Return address, port and store of ranks that are to be: the first one calls it before it starts the others.

        Args:
            address: Of this machine, as the others reach it.
            size: Number of ranks.
        """
        store = TCPStore(address, 0, size, is_master=True, wait_for_workers=False)
        return address, store.port, store

    @classmethod
    def connected(
        cls, rank: int, size: int, *, address: str, port: int, device: str | torch.device = "cpu"
    ) -> "RankGroup":
        """Return the ranks as another one than the first sees them; waits until all are there.

        Args:
            rank: Number of this process, 1 or more.
            size: Number of ranks.
            address: Of the first one.
            port: Of its store.
            device: Where this one trains.
        """
        return cls(rank, size, store=TCPStore(address, port, size, is_master=False), device=device)

    def generator(self, device: str | torch.device) -> torch.Generator:
        generator = ShardGenerator(device)
        generator.total = self.total
        return generator

    def join(self, step: Step) -> None:
        if (conflict := indivisible(step.settings)) is not None:
            raise conflict
        whole = step.loss

        def loss(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            assert self._shard is not None
            return whole(x, y, generator) * self._shard.weight

        step.transforms.append(self._take)
        step.loss = loss
        step.after_backward.insert(0, lambda: self._sum_gradients(step.model))

    @contextmanager
    def training(self, model: nn.Module) -> Iterator[None]:
        with synchronized(model, self._batch):
            yield

    def rows(self, images: int) -> slice:
        shard = shard_of(images, rank=self.rank, size=self.size)
        return slice(shard.first, shard.first + shard.rows) if shard.counted else slice(0)

    def total(self, values: Tensor) -> Tensor:
        values = values.clone()
        with self._heeding():
            dist.all_reduce(values)
        return values

    def share(self, *modules: nn.Module) -> None:
        with torch.no_grad():
            for tensor in [each for module in modules for each in (*module.parameters(), *module.buffers())]:
                value = tensor.detach().contiguous()
                if value.numel():
                    with self._heeding():
                        dist.broadcast(value.view(torch.uint8) if value.dtype == torch.bool else value, 0)
                    tensor.copy_(value)

    def agree(self, make: Callable[[], Any]) -> Any:
        result = make() if self.leads else None
        self.await_first()
        with self._heeding():
            received = _received(_sent(result) if self.leads else None)
        return result if self.leads else received

    def gather(self, values: Any) -> list[Any]:
        with self._heeding():
            return [_received(_sent(values) if rank == self.rank else None, source=rank) for rank in range(self.size)]

    def gather_counts(self, layers: Iterable[TrainableLayer]) -> None:
        for layer in layers:
            layer.gather_counts(self.gather)

    def await_first(self) -> None:
        self._waits += 1
        if self.leads:
            self._signal("go", self._waits)
        elif self._heard(self._waits) == "stop":
            raise RanksEndedError("the first rank has ended the training")

    def fail(self, error: Exception) -> None:
        if not self._open:
            return
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with suppress(dist.DistError):  # the first rank may be gone, and the store with it
            kind = _DIVERGED if isinstance(error, DivergedError) else _FAILED
            self._store.set(_FAILURE, f"{kind} rank {self.rank} failed: {reason}")
        self.abort()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self.leads:
            self._signal("stop", self._waits + 1)
        dist.destroy_process_group()

    def abort(self) -> None:
        """Leave at once, even if another thread waits for the other ranks: it gets an error."""
        if not self._open:
            return
        self._open = False
        with suppress(RuntimeError):  # of what has failed already
            dist.distributed_c10d._abort_process_group()

    def _signal(self, signal: _Signal, number: int) -> None:
        self._store.set(f"signal-{number}", signal)

    def _heard(self, number: int) -> str:
        key = f"signal-{number}"
        while True:
            try:
                self._store.wait([key], timedelta(seconds=_LOOK_SECONDS))
                return str(self._store.get(key), "ascii")
            except dist.DistStoreError:  # nothing yet
                self._raise_failure()
            except (dist.DistNetworkError, RuntimeError) as error:
                raise RanksEndedError(f"the first rank is gone: {error}") from error

    @contextmanager
    def _heeding(self) -> Iterator[None]:
        """Compute together within; what fails because another rank has failed is raised with its reason."""
        try:
            yield
        except RuntimeError as error:
            self._raise_failure(error)
            raise

    def _raise_failure(self, cause: Exception | None = None) -> None:
        """Raise that another rank has failed, if one has."""
        try:
            told = str(self._store.get(_FAILURE), "utf-8") if self._store.check([_FAILURE]) else ""
        except RuntimeError:  # the store is gone with the first rank
            return
        kind, _, message = told.partition(" ")
        if kind:
            raise (DivergedError if kind == _DIVERGED else RankFailedError)(message) from cause

    def _take(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images and labels that this rank computes, and draw for them."""
        assert isinstance(generator, ShardGenerator)
        self._shard = generator.shard = shard_of(len(y), rank=self.rank, size=self.size)
        self._batch.running, self._batch.counted = True, self._shard.counted
        return self._shard.of(x), self._shard.of(y)

    @torch.no_grad()
    def _sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients over the ranks, as many at once as go into a bucket.

        A parameter has a gradient on every rank or on none, since all ranks compute the same graph.
        """
        self._batch.running = False
        for bucket in _buckets([p.grad for p in model.parameters() if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with self._heeding():
                dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients in groups of one dtype and of a size at which a sum over ranks is worth its latency."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            if bucket and sum(each.numel() for each in bucket) + gradient.numel() > _BUCKET_NUMBERS:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket


def _sent(value: Any) -> Tensor:
    """Return a value as bytes that `_received` reads without running code of the sender."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _received(content: Tensor | None, *, source: int = 0) -> Any:
    """Return on every rank the value whose bytes one of them has."""
    size = torch.tensor([0 if content is None else len(content)])
    dist.broadcast(size, source)
    received = torch.empty(int(size), dtype=torch.uint8) if content is None else content
    dist.broadcast(received, source)
    return torch.load(io.BytesIO(received.numpy().tobytes()), weights_only=True, map_location="cpu")
