"""What the nodes of a graph do in training beside what they do in evaluation."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DropPath:
    """A value is replaced by zeros at random: stochastic depth.

    Args:
        rate: Probability of zeros, from 0 to 1.
        per_image: Whether each image is drawn for itself, or the whole batch at once.
        scale: Whether what stays is divided by the probability to stay.
    """

    rate: float
    per_image: bool = True
    scale: bool = True


@dataclass(frozen=True, slots=True)
class Dropout:
    """Entries of a value are dropped and the others divided by the probability to stay.

    Args:
        rate: Probability to be dropped, from 0 to 1.
        per_map: Whether whole channels are dropped.
    """

    rate: float
    per_map: bool = False


@dataclass(frozen=True, slots=True)
class AttentionDropout:
    """Attention drops entries of its weights.

    Args:
        rate: Probability to be dropped, from 0 to 1.
    """

    rate: float


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """A batch norm uses the statistics of the batch and updates its running ones.

    Args:
        momentum: Share of the batch in the running statistics; None for the average over all batches.
    """

    momentum: float | None


Training = DropPath | Dropout | AttentionDropout | BatchStatistics
