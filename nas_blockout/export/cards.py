"""Model cards: what an exported model is, how well it does, what it costs, and how to load it in three lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_GROUPS = 16


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What belongs to an exported model beside its weights.

    Args:
        name: Of the model; the arm that it won.
        study: Name of the study.
        question: What the study asked.
        data: Name of the data set.
        train_images: Images that it was trained on.
        class_names: In the order of the logits.
        channels: Of an image.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        mean: Of each channel, of images in [0, 1].
        std: Likewise the standard deviation.
        parameters: Number of trainable parameters.
        macs: Multiply-accumulates an image.
        seed: Of the training that is exported.
        test_accuracy: Of this very model, 0..1.
        test_images: Images behind it.
        accuracy: Mean and 95% interval over the seeds of the study, as a text.
        verdict: What the study found, in one sentence.
        spent: What finding it cost, as a text.
        architecture: JSON form of its groups and branches, or None.
        equality: Largest difference of logits between the masked network and the branched one, or None.
    """

    name: str
    study: str
    question: str
    data: str
    train_images: int
    class_names: Sequence[str]
    channels: int
    height: int
    width: int
    mean: Sequence[float]
    std: Sequence[float]
    parameters: int
    macs: int
    seed: int
    test_accuracy: float | None
    test_images: int | None
    accuracy: str
    verdict: str
    spent: str
    architecture: Mapping[str, Any] | None = None
    equality: Mapping[str, Any] | None = None

    def preprocessing(self) -> dict[str, Any]:
        """Return what turns a picture into the input, as plain JSON types."""
        return {
            "input": "float32 images in [0, 1], (batch, channels, height, width); the model normalises them itself",
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": list(self.class_names),
        }


def card(description: ModelDescription) -> str:
    """Return the card as Markdown."""
    shape = f"(batch, {description.channels}, {description.height}, {description.width})"
    accuracy = f"{description.test_accuracy:.2%}" if description.test_accuracy is not None else "not measured"
    images = f" on {description.test_images} images that nothing was selected on" if description.test_images else ""
    proof = _proof(description.equality)
    return f"""# {description.name}

Winner of the arm `{description.name}` of the study `{description.study}`: {description.question}

| | |
|---|---|
| data | {description.data}, {description.train_images} training images, {len(description.class_names)} classes |
| test accuracy of this model | {accuracy}{images} (seed {description.seed}) |
| over the seeds of the study | {description.accuracy} |
| parameters | {description.parameters:,} |
| multiply-accumulates an image | {description.macs:,} |
| spent to find and train it | {description.spent} |

{description.verdict}

## Load it

Input: float32 images in [0, 1], shape `{shape}`, any batch; output: logits in the order of
`class_names` in `preprocessing.json`. The model normalises the images itself.

```python
import torch
model = torch.export.load("model.pt2").module()
classes = model(images).argmax(1)
```

```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {{"images": images}})[0]
```

`weights.safetensors` with `architecture.json` are for those who build the network with nas_blockout.

{proof}{_diagram(description.architecture)}## Limits

It knows only the classes above and pictures like those it was trained on: same size, same kind, one object. Accuracy on
other pictures was not measured. `nas-blockout verify` repeats the comparison of all forms that `verification.json`
records.
"""


def _proof(equality: Mapping[str, Any] | None) -> str:
    if not equality:
        return ""
    rows = "\n".join(
        f"| {name} | {found['max_abs_difference']:.1e} | {found['bound']:.0e} |" for name, found in equality.items()
    )
    return f"""## Proof of the distillation

Largest difference of logits between the masked network that learned and the branched network, before training went on:

| precision | difference | bound |
|---|---|---|
{rows}

"""


def _diagram(architecture: Mapping[str, Any] | None) -> str:
    """Return the branches as a Mermaid graph; nothing for a dense network or one too large to read."""
    if not architecture or not 1 < max(len(layer["groups"]) for layer in architecture["layers"]) <= MOST_GROUPS:
        return ""
    lines = ["## Branches", "", "```mermaid", "graph LR"]
    layers = architecture["layers"]
    for number, layer in enumerate(layers):
        before = layers[number - 1]["groups"] if number else []
        for position, group in enumerate(layer["groups"]):
            node = f"n{number}_{position}"
            lines.append(f'  {node}["{layer["name"]}: {_held(group)}"]')
            lines += [
                f"  n{number - 1}_{source} --> {node}"
                for source, other in enumerate(before)
                if set(other["clusters"]) & set(group["clusters"])
            ]
    return "\n".join([*lines, "```", "", ""])


def _held(group: Mapping[str, Any]) -> str:
    classes = " ".join(map(str, group.get("classes", ())))
    return f"classes {classes}" if classes else f"{group['width']} nodes"
