"""The loss and the accuracy of a model over all images of a split."""

import torch
from torch import nn
from torch.nn import functional as F

from nas_blockout.training.epoch_records import Batches, Evaluation
from nas_blockout.training.ranks import ALONE, Ranks


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Batches, *, device: str | torch.device = "cpu", ranks: Ranks = ALONE
) -> Evaluation:
    """Return loss, accuracy and predictions of a model in eval mode over one pass; its mode is left as it was.

    Args:
        model: Gives logits by ``model(x)``.
        loader: Images of a split.
        device: Where the model is.
        ranks: Each evaluates a part of every batch; all return the same.
    """
    was_training = model.training
    model.eval()
    loss, hits, predictions = 0.0, 0, []
    for x, y in loader.batches():
        own = ranks.rows(len(y))
        chosen = torch.zeros(len(y), dtype=torch.int64)
        if len(y[own]):
            logits, labels = model(x[own].to(device)), y[own].to(device)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            predicted = logits.argmax(1)
            hits += int((predicted == labels).sum())
            chosen[own] = predicted.cpu()
        predictions.append(chosen)
    model.train(was_training)
    losses, right = ranks.total(torch.tensor([loss, hits], dtype=torch.float64)).tolist()
    return Evaluation(losses / len(loader), int(right) / len(loader), ranks.total(torch.cat(predictions)))
