"""The loss and the accuracy of a model over all images of a split."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.training.epoch_records import Batches, Evaluation
from nas_blockout.training.precision import autocast, products
from nas_blockout.training.ranks import ALONE, Ranks
from nas_blockout.training.training_settings import Precision


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Batches,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Return loss, accuracy and predictions of a model in eval mode over one pass; its mode is left as it was.

    What is found of a batch stays on the device; the host waits for it once, at the end.

    Args:
        model: Gives logits by ``model(x)``.
        loader: Images of a split.
        device: Where the model is.
        precision: In what numbers it computes.
        ranks: Each evaluates a part of every batch; all return the same.
    """
    was_training = model.training
    model.eval()
    labels_seen = []
    found = torch.zeros(2, dtype=torch.float64, device=device)  # the sum of the losses, and how many were right
    predictions = []
    with products(precision, device), autocast(precision, device):
        for x, y in loader.batches():
            own = ranks.rows(len(y))
            chosen = torch.zeros(len(y), dtype=torch.int64, device=device)
            if len(y[own]):
                logits, labels = model(x[own].to(device, non_blocking=True)), y[own].to(device, non_blocking=True)
                chosen[own] = logits.argmax(1)
                loss = F.cross_entropy(_single(logits), labels, reduction="sum")
                found += torch.stack([loss.double(), (chosen[own] == labels).sum().double()])
            predictions.append(chosen)
            labels_seen.append(y)
    model.train(was_training)
    losses, right = ranks.total(found.cpu()).tolist()
    predicted = ranks.total(torch.cat(predictions).cpu())
    balanced = balanced_accuracy(torch.cat(labels_seen).cpu(), predicted)
    return Evaluation(losses / len(loader), int(right) / len(loader), predicted, balanced)


def balanced_accuracy(labels: Tensor, predictions: Tensor) -> float:
    """Return the mean, over the classes that there are, of the share of their images that were recognized.

    Args:
        labels: Shape (n,), int64, one image or more.
        predictions: Likewise, the class given to each image.

    References:
        Brodersen, Ong, Stephan, Buhmann, "The Balanced Accuracy and Its Posterior Distribution", ICPR 2010.
    """
    images = labels.bincount()
    right = labels[labels == predictions].bincount(minlength=len(images))
    return float((right[images > 0].double() / images[images > 0]).mean())


@contextmanager
def keeping_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the logits that a model gives within the block: a list of batches, in single precision, in host memory.

    An evaluation within it tells more than accuracy and loss without reading an image twice.

    Args:
        model: As for `evaluate`.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        kept.append(logits.detach().float().cpu())

    handle = model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _single(logits: Tensor) -> Tensor:
    """Return logits of half precision in single precision, others as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
