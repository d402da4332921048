"""The front matter of a model card: YAML that Hugging Face's hub reads, written as strings, lists and mappings."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Names of the sources that the hub has, by which it links a model to its data.
_ON_THE_HUB = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
_TAGS = ("image-classification", "nas-blockout", "neural-architecture-search", "pytorch")
_LICENSE_KEY = "license: "


def front_matter(  # noqa: PLR0913  # one keyword an entry
    *,
    name: str,
    study: str,
    data: str,
    seed: int,
    accuracy: float | None,
    mean_accuracy: float | None = None,
    seeds: int = 0,
    onnx: bool = True,
    own_images: bool = False,
) -> str:
    """Return the front matter with its fences, without a license: `with_license` adds one.

    Args:
        name: Of the model.
        study: Name of the study.
        data: Name of the data set.
        seed: Of the training that is exported.
        accuracy: Test accuracy of this very model, in [0, 1]; without one there is no `model-index`.
        mean_accuracy: Mean test accuracy over the seeds of the study, likewise.
        seeds: Seeds behind that mean.
        onnx: Whether there is an ONNX form.
        own_images: Whether the data are somebody's own images, which no data set of the hub is.
    """
    known = _ON_THE_HUB.get(data, data)
    fields: dict[str, Any] = {
        "library_name": "nas-blockout",
        "pipeline_tag": "image-classification",
        "tags": [*_TAGS, *(["onnx"] if onnx else [])],
        **({} if own_images else {"datasets": [known]}),
        "metrics": ["accuracy"],
    }
    if accuracy is not None:
        metrics = [
            {"type": "accuracy", "value": round(accuracy, 6), "name": f"Test accuracy of this model, seed {seed}"}
        ]
        if mean_accuracy is not None:
            about = f"Mean test accuracy, {seeds} seeds"
            metrics.append({"type": "accuracy", "value": round(mean_accuracy, 6), "name": about})
        result = {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"name": data, "type": known, "split": "test"},
            "metrics": metrics,
        }
        fields["model-index"] = [{"name": f"{study}-{name}", "results": [result]}]
    return "\n".join(("---", *_lines(fields), "---"))


def with_license(card: str, license: str) -> str:
    """Return a card whose front matter names a license, in place of one that was there.

    Args:
        card: Begins with front matter of `front_matter`.
        license: As the hub writes it, such as ``apache-2.0``.

    Raises:
        ValueError: The card has no front matter.
    """
    if not card.startswith("---\n"):
        raise ValueError("the card has no front matter: export the model again, with this release")
    head, fence, body = card.removeprefix("---\n").partition("\n---\n")
    lines = [line for line in head.split("\n") if not line.startswith(_LICENSE_KEY)]
    text = "\n".join(("---", f"{_LICENSE_KEY}{_scalar(license)}", *lines))
    return f"{text}{fence}{body.replace(NO_LICENSE, f'License: {license}.')}"


NO_LICENSE = "No license was given: ask who published the model. (`nas-blockout push --license NAME` names one.)"


def _lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            lines += [f"{indent}{key}:", *_lines(inner, f"{indent}  ")]
        elif isinstance(inner, Sequence) and not isinstance(inner, str):
            lines += [f"{indent}{key}:", *(line for item in inner for line in _item(item, indent))]
        else:
            lines.append(f"{indent}{key}: {_scalar(inner)}")
    return lines


def _item(value: Any, indent: str) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{indent}- {_scalar(value)}"]
    first, *rest = _lines(value, f"{indent}  ")
    return [f"{indent}- {first.strip()}", *rest]


def _scalar(value: Any) -> str:
    """Return a text or a number in YAML: texts between double quotes, whose escapes are those of JSON."""
    if isinstance(value, str):
        plain = "".join(character if character.isprintable() else " " for character in value)
        return json.dumps(plain, ensure_ascii=False)
    return json.dumps(value)
