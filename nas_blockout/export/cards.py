"""Model cards: what an exported model is, its accuracy, its cost, and how to load it in three lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nas_blockout.export import card_sections
from nas_blockout.export.card_metadata import NO_LICENSE, front_matter
from nas_blockout.export.card_sections import Provenance
from nas_blockout.serialization import count_of
from nas_blockout.structure.branching import Branch, Structure
from nas_blockout.structure.folding import DrawnGroup, drawing

MOST_GROUPS = 16
MOST_CLASSES_IN_GROUP = 8
MOST_CLASSES_LISTED = 20
_UNSAFE_IN_LABELS = {ord(character): f"#{ord(character)};" for character in '"#<>[]`&'}

# What a proof of equality is of, by what its name begins with.
_PROVED = {"raw_": "under thresholded memberships", "cut_": "for the classes that it was cut to"}

_LOAD_PROGRAM = """With PyTorch, `images` being a tensor:

```python
import torch
model = torch.export.load("model.pt2").module()
logits = model(images)
```

Its classes, size, mean and standard deviation:

```python
import json, torch
torch.export.load("model.pt2", extra_files=(inside := {"preprocessing.json": ""}))
asked = json.loads(inside["preprocessing.json"])
```"""


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
        test_accuracy: Of this very model, [0, 1].
        test_images: Images behind it.
        test_balanced_accuracy: Mean of its accuracies on the classes, [0, 1], or None.
        accuracy: Mean and 95% interval over the seeds of the study, as a text.
        verdict: What the study found, in one sentence.
        spent: What finding it cost, as a text.
        architecture: JSON form of its groups and branches, or None.
        recommendation: Which model the study recommends, this one or another, as rows of a label and a text.
        structure: How far it branches, or None for a network without groups.
        branches: The same in one line, with what the seeds of the study have in common, or None.
        memberships: To which end the membership probabilities came that the networks of the study learned, in one
            line, or None.
        blocks: What a network that skips blocks keeps, and what its policy network costs, or None.
        equality: Largest difference of logits between the masked network and the branched one, its bound, and how far
            the logits spread, by precision; of the memberships as thresholded with ``raw_`` before it. Or None.
        background: What transparent pixels show to the model, as in `nas_blockout.data.streaming.image_io`.
        resize_size: Shorter side to which an image is scaled before its middle is cut out, in pixels; None to cover
            the size of the model's images.
        latency: Of one image and of many, measured together with the other models of the study, as a text, or None.
        origin: What builds the network, as of `nas_blockout.experiment.origin_of`, or None.
        batch: Images that are expected at a time, for which branches are then divided into operations; None for one as
            well as many. Any number can be run.
        cut_from: Of a network that was cut to some classes of another one: ``name``, ``classes``, ``parameters`` and
            ``macs`` of that, and how far their logits are apart as ``equality``. Or None.
        provenance: Its data, the search that found it, and what it ran on, or None.
        probabilities: ``temperature`` by which logits are divided for probabilities, ``calibration``, how good these
            are, and ``novelty``, below which energy an image is unlike those of validation; each may be missing. None
            if nothing was measured.

    Raises:
        ValueError: There is not one mean and one standard deviation above 0 for each channel, or a size or the batch is
            below 1.
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
    test_balanced_accuracy: float | None = None
    architecture: Mapping[str, Any] | None = None
    recommendation: Sequence[tuple[str, str]] = ()
    structure: Structure | None = None
    branches: str | None = None
    memberships: str | None = None
    blocks: str | None = None
    equality: Mapping[str, Any] | None = None
    background: str = "white"
    resize_size: int | None = None
    latency: str | None = None
    origin: Mapping[str, Any] | None = None
    batch: int | None = None
    cut_from: Mapping[str, Any] | None = None
    provenance: Provenance | None = None
    probabilities: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        sizes = (self.channels, self.height, self.width, len(self.class_names))
        if min(sizes) < 1:
            raise ValueError(f"channels, height, width and classes must be at least 1, got {sizes}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"each of the {self.channels} channels needs one mean and one std, got {self.mean} and {self.std}"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0 in every channel, got {self.std}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, or None for one image as well as many, got {self.batch}")

    def unproved(self) -> str | None:
        """Return in which precision the proof of equality failed and by how much; None if it holds or there is none."""
        proofs = {**(self.equality or {}), **{f"cut_{name}": each for name, each in self._cut_equality().items()}}
        for name, entry in proofs.items():
            # Rounding grows with the logits, so the bound does too where they spread by more than 1.
            difference, bound = entry["max_abs_difference"], entry["bound"] * max(1.0, entry.get("spread", 1.0))
            if not difference <= bound:  # so that NaN is a failure
                kind, memberships = next(
                    ((prefix, text) for prefix, text in _PROVED.items() if name.startswith(prefix)),
                    ("", "under its memberships"),
                )
                precision = name.removeprefix(kind)
                return (
                    f"{memberships} its logits differ by {difference:.2e} in {precision}, more than {bound:.0e}; "
                    "this is a defect of nas_blockout: report it with the study file and the seed"
                )
        return None

    def _cut_equality(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = (self.cut_from or {}).get("equality", {})
        return found

    def preprocessing(self) -> dict[str, Any]:
        """Return what turns an image into the input, as plain JSON types."""
        return {
            "input": "float32 images in [0, 1], (batch, channels, height, width); the model normalizes them itself",
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "background": self.background,
            "resize_size": self.resize_size,
            "class_names": list(self.class_names),
            **({"probabilities": dict(self.probabilities)} if self.probabilities else {}),
        }


def card(
    description: ModelDescription, *, without_onnx: str | None = None, least: Mapping[str, str] | None = None
) -> str:
    """Return the card as Markdown.

    Args:
        description: Of the model.
        without_onnx: Why there is no ONNX form, if there is none.
        least: By form the oldest version of what runs it that is known to.
    """
    shape = f"(batch, {description.channels}, {description.height}, {description.width})"
    arm = _line((description.cut_from or {}).get("name", description.name))
    question = f": {_line(description.question)}" if description.question.strip() else "."
    needs = "".join(f"\n`{name}` needs {runtime} or newer." for name, runtime in (least or {}).items())
    forms = "`model.pt2`" if without_onnx else "`model.pt2` and `model.onnx`"
    facts = _facts(description).items()
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts if value.strip())
    sections = (
        _front_matter(description, onnx=without_onnx is None),
        f"# {_line(description.name)}",
        f"Winner of the arm `{arm}` of the study `{description.study}`{question}",
        f"| | |\n|---|---|\n{table}",
        "" if description.provenance else description.verdict,
        """## Intended use

To classify images of the same kind as those below, one object an image, into the classes above; and to repeat or extend
the study that made it. Not for decisions about people, and not where an error does harm, without tests of your own.""",
        *_about(description, arm),
        f"""## Load it

Input: float32 images in [0, 1], shape `{shape}`, any batch; output: logits in the order of `class_names`. The model
normalizes the images itself. The content of `preprocessing.json` is also stored in {forms},
so that each file can be used on its own.{needs}""",
        _LOAD_PROGRAM,
        _load_onnx(without_onnx),
        _rebuild(description.origin, description.cut_from),
        """Before you load files that somebody sent you, run `nas-blockout verify` on their folder: it repeats the
comparison of all forms that `verification.json` records, and refuses files that could do more than compute.""",
        _structure(description),
        _proof(description.equality),
        _cut_proof(description.cut_from),
        _branches(description),
        card_sections.probabilities(description.probabilities or {}),
        f"""## Limits

It knows only the classes above and images like those it was trained on: same size, same kind, one object. It names one
of its classes for every image, whatever the image shows. Accuracy on other images was not measured, nor how it differs
between groups of people or places.

{NO_LICENSE}""",
    )
    return "\n\n".join(section.strip() for section in sections if section.strip()) + "\n"


def _facts(description: ModelDescription) -> dict[str, str]:
    """Return the rows of the first table; those without a text are left out."""
    accuracy = f"{description.test_accuracy:.2%}" if description.test_accuracy is not None else "not measured"
    balanced = description.test_balanced_accuracy
    images = f" on {description.test_images} test images" if description.test_images else ""
    return {
        **dict(description.recommendation),
        "data": f"{description.data}, {description.train_images} training images",
        **({"cut from": _whole(description.cut_from)} if description.cut_from else {}),
        "classes": f"{len(description.class_names)}: {_listed(description.class_names, MOST_CLASSES_LISTED)}",
        "test accuracy of this model": f"{accuracy}{images} (seed {description.seed})",
        **({"balanced test accuracy": f"{balanced:.2%}, mean over classes"} if balanced is not None else {}),
        "over the seeds of the study": description.accuracy,
        "parameters": f"{description.parameters:,}",
        "multiply-accumulates an image": f"{description.macs:,}",
        **({"latency on one thread": description.latency} if description.latency else {}),
        **({"branches": description.branches} if description.branches else {}),
        **({"learning": description.memberships} if description.memberships else {}),
        **({"blocks": description.blocks} if description.blocks else {}),
        "spent to find and train it": description.spent,
        **({"images expected at a time": f"{description.batch:,}"} if description.batch else {}),
    }


def _front_matter(description: ModelDescription, *, onnx: bool) -> str:
    known = description.provenance
    return front_matter(
        name=_line(description.name),
        study=description.study,
        data=description.data,
        seed=description.seed,
        accuracy=description.test_accuracy,
        mean_accuracy=known.mean_accuracy if known and not description.cut_from else None,
        seeds=len(known.seeds) if known else 0,
        onnx=onnx,
        own_images=description.data == "imagefolder",
    )


def _about(description: ModelDescription, arm: str) -> tuple[str, ...]:
    """Return the sections on data, evaluation and search, as far as it is known where the model comes from."""
    known = description.provenance
    if known is None:
        return ()
    of_whole = replace(known, mean_accuracy=None) if description.cut_from else known  # no seed was cut but this one
    return (
        card_sections.training_data(
            known,
            data=description.data,
            train_images=description.train_images,
            mean=description.mean,
            std=description.std,
        ),
        card_sections.evaluation(
            of_whole, seed=description.seed, accuracy=description.test_accuracy, images=description.test_images
        ),
        card_sections.how_found(known, study=description.study, arm=arm, verdict=description.verdict),
    )


def diagram(architecture: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Return the groups of an architecture and what they read as a Mermaid graph; layers of a large one are folded.

    Args:
        architecture: Its JSON form.
        class_names: In the order of the logits.
    """
    drawn = drawing(architecture)
    sources: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for source, reader in drawn.links:
        sources.setdefault(reader, []).append(source)
    lines = ["graph LR"]
    for number, column in enumerate(drawn.columns):
        name = column.name if len(column.layers) == 1 else f"{column.name} ({len(column.layers)} layers)"
        for position, group in enumerate(column.groups):
            node = f"n{number}_{position}"
            label = f"{name}: {_group_label(group, class_names)}".translate(_UNSAFE_IN_LABELS)
            lines.append(f'  {node}["{label}"]')
            lines += [f"  n{source}_{other} --> {node}" for source, other in sources.get((number, position), ())]
    return "\n".join(lines)


def _load_onnx(missing: str | None) -> str:
    if missing:
        return f"There is no ONNX form: {missing}."
    return """With ONNX Runtime, `images` being a NumPy array:

```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {"images": images})[0]
```

Its classes, size, mean and standard deviation:

```python
import json, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
asked = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing.json"])
```"""


def _rebuild(origin: Mapping[str, Any] | None, cut_from: Mapping[str, Any] | None) -> str:
    """Return the section on building the network itself."""
    if cut_from is not None:
        return f"""To train it on, build the whole network, `{cut_from["name"]}`, and cut that with
`nas_blockout.experiment.subset_of`: what is written here can be run only."""
    if origin is None:
        return """With nas_blockout, `network` being built by it from `architecture.json`; the weights alone take images
that were normalized with `mean` and `std` of `preprocessing.json`:

```python
from safetensors.torch import load_file
weights = load_file("weights.safetensors")
network.load_state_dict(weights)
```"""
    factory = origin["backbone"].get("factory")
    imported = f" The code of its factory, {factory}, is imported for it." if factory else ""
    given = f", factory={factory!r}" if factory else ""
    return f"""As a network to train on, with nas_blockout, which builds it as `network.json` says.{imported} It takes
the same images:

```python
from nas_blockout.experiment import load_model
model = load_model("."{given})
```"""


def _structure(description: ModelDescription) -> str:
    """Return the section on how far the network branches; nothing for one without groups."""
    structure = description.structure
    if structure is None:
        return ""
    told = _line(description.branches or "")
    text = f"{told[0].upper()}{told[1:]}. " if told else ""
    text += "Density is the share of the connections between kept nodes that exist"
    layers = [
        (layer.name, f"{layer.nodes:,}", _number(layer.dense_nodes), str(layer.groups), f"{layer.density:.3g}")
        for layer in structure.layers
    ]
    tables = [_table(("layer", "nodes", "of the dense layer", "groups", "density"), layers)]
    if structure.is_branched:
        text += ";\nwhat is a branch's own belongs to no other branch"
        rows = [_branch_row(branch, description.class_names) for branch in structure.branches]
        tables.append(_table(("branch", "MACs of its own", "parameters of its own", "classes"), rows))
    return "\n\n".join(("## Structure", f"{text}.", *tables))


def _branch_row(branch: Branch, class_names: Sequence[str]) -> tuple[str, ...]:
    classes = _cell(_listed([class_names[label] for label in branch.classes], MOST_CLASSES_IN_GROUP))
    return str(branch.cluster), _number(branch.exclusive_macs), _number(branch.exclusive_parameters), classes


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table without the columns of which nothing is known, as of costs in a network cut to some classes."""
    known = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    head = [[columns[number] for number in known], ["---"] * len(known)]
    lines = [*head, *([row[number] or "none" for number in known] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _proof(equality: Mapping[str, Any] | None) -> str:
    if not equality:
        return ""
    rows = "\n".join(_proof_row(name, result) for name, result in equality.items())
    return f"""## Proof of the distillation

Largest difference of logits between the masked network that learned and a branched network with the same weights,
before training went on: under the memberships of this model, and under the memberships as they were thresholded, before
anything was trimmed, merged or cleaned up. The spread is how far the masked network's logits differ between images.

| memberships | precision | difference | bound | spread |
|---|---|---|---|---|
{rows}

"""


def _whole(cut_from: Mapping[str, Any]) -> str:
    """Return what a network for some classes was cut from."""
    return (
        f"`{cut_from['name']}`, with {cut_from['classes']} classes, {cut_from['parameters']:,} parameters and "
        f"{cut_from['macs']:,} multiply-accumulates an image; nothing was trained again"
    )


def _cut_proof(cut_from: Mapping[str, Any] | None) -> str:
    if cut_from is None:
        return ""
    rows = "\n".join(
        f"| {name} | {each['max_abs_difference']:.1e} | {each['bound']:.0e} | {each['spread']:.3g} |"
        for name, each in cut_from["equality"].items()
    )
    return f"""## Proof of the cut

Largest difference to the logits that the whole network gives for these classes, on images of noise.

| precision | difference | bound | spread |
|---|---|---|---|
{rows}

"""


def _proof_row(name: str, result: Mapping[str, Any]) -> str:
    memberships = "as thresholded" if name.startswith("raw_") else "of this model"
    spread = f"{result['spread']:.3g}" if "spread" in result else "not recorded"
    difference, bound = result["max_abs_difference"], result["bound"]
    return f"| {memberships} | {name.removeprefix('raw_')} | {difference:.1e} | {bound:.0e} | {spread} |"


def _branches(description: ModelDescription) -> str:
    """Return the section with the diagram; nothing without an architecture or for one too large to read."""
    architecture = description.architecture
    if not architecture or max(len(column.groups) for column in drawing(architecture).columns) > MOST_GROUPS:
        return ""
    return f"## Branches\n\n```mermaid\n{diagram(architecture, description.class_names)}\n```\n\n"


def _group_label(group: DrawnGroup, class_names: Sequence[str]) -> str:
    constant = ", constant" if group.constant else ""
    if not group.classes:
        return f"{count_of(group.nodes, 'node')}{constant}"
    return _listed([class_names[label] for label in group.classes], MOST_CLASSES_IN_GROUP) + constant


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
