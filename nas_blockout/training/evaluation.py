"""The loss and the accuracy of a model over all images of a split."""

import torch
from torch import nn
from torch.nn import functional as F

from nas_blockout.training.epoch_records import Batches, Evaluation


@torch.no_grad()
def evaluate(model: nn.Module, loader: Batches, *, device: str | torch.device = "cpu") -> Evaluation:
    """Return loss, accuracy and predictions of a model in eval mode over one pass; its mode is left as it was."""
    was_training = model.training
    model.eval()
    losses, hits, predictions = 0.0, 0, []
    for x, y in loader.batches():
        logits, labels = model(x.to(device)), y.to(device)
        losses += float(F.cross_entropy(logits, labels, reduction="sum"))
        chosen = logits.argmax(1)
        hits += int((chosen == labels).sum())
        predictions.append(chosen.cpu())
    model.train(was_training)
    return Evaluation(losses / len(loader), hits / len(loader), torch.cat(predictions))
