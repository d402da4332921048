"""Knowledge distillation: the second stage also learns from the soft outputs of the first stage's network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.randomness.batch_shards import whole_rows
from nas_blockout.randomness.draws import Randomness
from nas_blockout.training_protocol import Criterion, TelemetryValue, TrainableModel


def soft_target_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    temperature: float,
    criterion: Criterion = F.cross_entropy,
) -> Tensor:
    r"""Return the mean loss over a batch of labels and of a teacher's soft outputs.

    .. math:: L = (1 - w)\, H\big(y, \sigma(z)\big) + w\, T^2\, D_{KL}\big(\sigma(v / T) \,\|\, \sigma(z / T)\big)

    where z are `logits`, v are `teacher_logits`, w is `weight`, T is `temperature` and :math:`\sigma` is the softmax.
    The factor :math:`T^2` keeps the gradient of the soft part in proportion where T changes.

    Args:
        logits: Of the network that learns, shape ``(batch, classes)``.
        teacher_logits: Logits of the teacher, shape ``(batch, classes)``; no gradient reaches them.
        labels: Classes, shape ``(batch,)``; of mixed images the probability of each class, ``(batch, classes)``.
        weight: Of the soft part, in [0, 1].
        temperature: Above 0; the higher, the more the small probabilities count.
        criterion: H, the error of logits against labels.

    References:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. NIPS Deep Learning Workshop 2014
        (arXiv 1503.02531, 2015), section 2.

    Differs from the paper in: the divergence stands in place of the cross entropy with soft targets, which is larger by
    the entropy of the targets and has the same gradient; so the loss is 0 where the student is the teacher and right.
    """
    hard = criterion(logits, labels)
    student, teacher = (logits / temperature).log_softmax(1), (teacher_logits.detach() / temperature).log_softmax(1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * hard + weight * temperature**2 * soft


class StudentWithTeacher(TrainableModel):
    """A network in training and its teacher, which stays in eval mode and is not trained.

    In eval mode it computes what the student does. Its state holds the teacher too, so that a resumed training gives
    the same numbers, and the number of images that passed through the teacher, which telemetry reports.

    Args:
        student: Gives logits by ``student(x, generator)``.
        teacher: A plain network of its own, which gives logits by ``teacher(x)``.
        weight: Of the soft targets in the loss, in [0, 1].
        temperature: Of the soft targets, above 0.
    """

    passes: Tensor

    def __init__(self, student: nn.Module, teacher: nn.Module, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.eval().requires_grad_(requires_grad=False)
        self.weight, self.temperature = weight, temperature
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return the logits of the network in training, shape ``(batch, classes)``."""
        logits: Tensor = self.student(x, generator)
        return logits

    def loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Return the mean loss of a batch; the teacher sees the same images, augmented as they are."""
        with torch.no_grad():
            teacher_logits = self.teacher(x)
        self.passes += whole_rows(len(x), generator)
        logits, weight, temperature = self(x, generator), self.weight, self.temperature
        return soft_target_loss(
            logits, teacher_logits, y, weight=weight, temperature=temperature, criterion=self.criterion
        )

    def train(self, mode: bool = True) -> "StudentWithTeacher":
        """Set the mode of the network in training; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def telemetry(self) -> dict[str, TelemetryValue]:
        """Return how many images have passed through the teacher."""
        return {"teacher/forward_passes": float(self.passes)}
