"""Models: ``nas-blockout inspect`` for networks, ``predict`` for exported ones, and what ``show`` prints of these."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.tree import Tree

from nas_blockout.atomic_files import whole_file
from nas_blockout.serialization import count_of
from services.cli import lazy_modules as lazy
from services.cli.console import (
    FAILED,
    NOT_FOUND,
    SOME_FAILED,
    UNREACHABLE,
    USAGE,
    JsonOption,
    existing_folder,
    fail,
    log,
    print_json,
    print_line,
    print_table,
    safe_text,
    table,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nas_blockout.experiment.layer_table import LayerTable
    from nas_blockout.export.model_summary import GroupOutline, LayerOutline
    from nas_blockout.export.prediction import ExportedModel
    from nas_blockout.structure.branching import LayerStructure

MAX_CLASSES_LISTED = 8
FIGURE_SUFFIXES = (".svg", ".png")

ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files, such as PNG or JPEG.")]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    images: ImagesArgument,
    top: Annotated[int, typer.Option(min=1, help="Number of most probable classes to show per image.")] = 3,
    form: Annotated[Literal["pt2", "onnx"], typer.Option(help="Format of the model to run.")] = "pt2",
    as_json: JsonOption = False,
) -> None:
    """Classify image files with an exported model. File hashes are verified before anything is loaded.

    Images of another size are resized to cover the model's input and center-cropped. Probabilities are calibrated if
    the model was exported with a temperature; otherwise they are the softmax of the logits. An image that is less like
    the validation images than 99% of them is marked: the model may know nothing of what it shows. Files that cannot be
    read are named, the others are answered, and the exit code is 4.
    """
    opened = lazy.prediction.ExportedModel.open(existing_folder(model))
    channels = opened.preprocessing["channels"]
    if channels not in (1, 3):
        fail(USAGE, f"{model} takes images with {channels} channels; image files have 1 or 3")
    read, problems = _readable(images, opened)
    documents, calibrated = [], False
    if read:
        batch = lazy.torch.stack(list(read.values()))
        found = opened.predict(batch, form=form)
        calibrated = found.calibrated
        unlike = [None] * len(batch) if found.unlike is None else found.unlike.tolist()
        for path, row, marked in zip(read, found.probabilities.tolist(), unlike, strict=True):
            best = _best(row, opened.class_names, top)
            classes = [{"name": name, "probability": p} for name, p in best]
            documents.append({"image": str(path), "classes": classes, "unlike_validation_images": marked})
            if not as_json:
                hint = (
                    f" (less like the validation images than {1 - (found.quantile or 0):.0%} of them)" if marked else ""
                )
                print_line(f"{path}: " + ", ".join(f"{name} {p:.1%}" for name, p in best) + hint)
    if as_json:
        failed = [{"image": str(path), "problem": problem} for path, problem in problems.items()]
        told = {"model": str(model), "form": form, "calibrated": calibrated}
        print_json({**told, "predictions": documents, "failed": failed})
    for problem in problems.values():
        log(f"error: {problem}")
    if problems and read:
        files = count_of(len(problems) + len(read), "file")
        log(f"{len(problems)} of {files} could not be read; the others are answered")
        raise typer.Exit(SOME_FAILED)
    if problems:
        raise typer.Exit(FAILED if any(path.exists() for path in problems) else NOT_FOUND)


def push(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    destination: Annotated[
        str, typer.Argument(help="A folder; or hf://owner/name, a repository of Hugging Face's hub.")
    ],
    hub: Annotated[bool, typer.Option("--hub", help="Take DESTINATION as owner/name on the hub.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="License for the card, such as apache-2.0. [default: none is named]")
    ] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Who sees a new repository of the hub.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch of the repository. [default: the main one]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace whatever is in the folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish an exported model, with its card as README.md, to a folder or to Hugging Face's hub.

    The model is verified first. A folder appears whole or not at all; the hub gets one commit. The token for the hub is
    that of `hf auth login` or HF_TOKEN.
    """
    existing_folder(model)
    to_hub = hub or destination.startswith(lazy.to_hub.HUB)
    if to_hub and force:
        fail(USAGE, "--force is for folders: a commit to the hub keeps what was there in its history")
    if not to_hub and (revision is not None or public):
        fail(USAGE, "--revision and --public are for the hub: name hf://owner/name, or add --hub")
    log(f"verifying {model}")
    try:
        if to_hub:
            repository = lazy.to_hub.repository_of(destination)
            place = lazy.to_hub.push_to_hub(
                model, repository, license=license, private=not public, revision=revision
            ).url
        else:
            place = str(Path(destination))
            lazy.to_folder.push_to_folder(model, Path(destination), license=license, force=force)
    except ValueError as error:
        fail(USAGE, str(error))
    except lazy.to_hub.HubError as error:
        fail(UNREACHABLE, str(error))
    print_json({"model": str(model), "pushed_to": place}) if as_json else print_line(place)


def inspect(
    network: Annotated[
        str,
        typer.Argument(
            metavar="FACTORY",
            help="What makes the network: package.module:name, path/to/file.py:name, or the name of a backbone.",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Option(
            "--argument",
            metavar="KEY=VALUE",
            help="Argument of the factory or setting of the backbone, in YAML; can be repeated.",
        ),
    ] = None,
    image: Annotated[
        str, typer.Option("--image", metavar="CxHxW", help="Channels, height and width of an image.")
    ] = "3x64x64",
    classes: Annotated[int, typer.Option("--classes", min=1, help="Number of classes.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show the layers of nodes of a network: what makes and reads them, what can be masked, and what stays whole.

    A layer that stays whole is still masked, but its nodes are neither removed nor separated. Nothing is trained or
    written. The code of the factory is imported and called.
    """
    shape = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})", image)
    if shape is None:
        fail(USAGE, f"--image must be channels, height and width, such as 3x64x64, got {image!r}")
    channels, height, width = map(int, shape.groups())
    try:
        backbone = _backbone_of(network, arguments or ())
        found = lazy.layer_table.layer_table(backbone, (channels, height, width), classes)
    except ValueError as error:
        fail(USAGE, " ".join(str(error).split()))
    for note in found.notes:
        log(note)
    print_json(found.to_json()) if as_json else _print_layers(found, network)


def _backbone_of(network: str, assignments: Sequence[str]) -> Any:
    """Return the settings of a backbone by its name, or of the one for factories.

    Raises:
        ValueError: There is neither such a backbone nor such a factory, or a setting is refused.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            fail(USAGE, f"--argument takes KEY=VALUE, such as width=32, got {assignment!r}")
        try:
            values[key.strip()] = lazy.yaml_reader.yaml_value(text)
        except (lazy.yaml.YAMLError, ValueError, RecursionError) as error:
            fail(USAGE, f"--argument {key}: the value is not valid YAML: {' '.join(str(error).split())}")
    if ":" in network:
        settings = {"name": "module", "factory": network, "arguments": values}
    else:
        settings = {"name": network, **values}
    return lazy.experiment.backbone_from_json(settings)


def _print_layers(found: "LayerTable", network: str) -> None:
    rows = [
        (
            *(row.layer, f"{row.nodes:,}", _some(row.producers), _some(row.readers)),
            *(f"{row.macs:,}", f"{row.maskable_share:.1%}", row.rigid or ""),
        )
        for row in found.layers
    ]
    columns = ("layer", "nodes", "produced by", "read by", "MACs", "maskable", "stays whole because")
    size = "x".join(map(str, found.image))
    print_table(
        table(columns, rows, title=f"{network}, images of {size}, {count_of(found.classes, 'class', 'classes')}")
    )
    if found.unmasked:
        unmasked = [
            (each.operation, _some(each.weights), f"{each.macs:,}", f"{each.macs / found.macs:.1%}", each.reason)
            for each in found.unmasked
        ]
        print_table(table(("not maskable", "weights", "MACs", "share", "because it"), unmasked))
    print_line(next(found.summary()))
    print_line(f"graph: {found.graph_hash}")


def _some(weights: Sequence[str]) -> str:
    """Return a few names as a text; a stream through many blocks has dozens of writers and readers."""
    names = [name.removesuffix(".weight") for name in weights]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _readable(images: Sequence[Path], model: "ExportedModel") -> tuple[dict[Path, "Tensor"], dict[Path, str]]:
    """Return the images as the model takes them, and of each file that is no image the problem."""
    asked = model.preprocessing
    size = (asked["height"], asked["width"])
    # A model without the key was exported before transparency was composited, and was trained in this way.
    background = asked.get("background", lazy.image_io.DROPPED)
    read: dict[Path, Tensor] = {}
    problems: dict[Path, str] = {}
    for path in images:
        if not path.is_file():
            problems[path] = f"there is no image file {path}"
            continue
        try:
            read[path] = lazy.image_io.read_image(
                path, asked["channels"], size, background=background, resize_size=asked.get("resize_size")
            )
        except lazy.data.DataCorrupt as error:
            problems[path] = str(error)
    return read, problems


def show_model(folder: Path, *, as_json: bool, figure: Path | None = None) -> None:
    """Print an exported model as a tree of layers and groups.

    Args:
        folder: Of the exported model.
        as_json: Whether to print JSON instead of the tree.
        figure: File to draw the architecture to as well, or None.
    """
    if figure is not None and figure.suffix.lower() not in FIGURE_SUFFIXES:
        fail(USAGE, f"--figure must name a file that ends in {' or '.join(FIGURE_SUFFIXES)}, got {figure}")
    model = lazy.prediction.ExportedModel.open(folder)
    if figure is not None:
        _write_diagram(model, figure)
    layers, manifest = lazy.model_summary.outline(model), model.manifest
    accuracy, structure = manifest.get("test_accuracy"), lazy.model_summary.structure_in(model)
    if as_json:
        facts = {"name": manifest["name"], "test_accuracy": accuracy, "class_names": model.class_names}
        facts |= {"structure": structure.to_json() if structure else None}
        facts |= {"memberships": manifest["memberships"]} if manifest.get("memberships") else {}
        print_json({**facts, "layers": [asdict(layer) for layer in layers]})
        return
    tested = "" if accuracy is None else f", test accuracy {accuracy:.2%}"
    tree = Tree(safe_text(f"{manifest['name']}: {count_of(len(model.class_names), 'class', 'classes')}{tested}"))
    for layer in layers:
        branch = tree.add(safe_text(f"{layer.name}: {_costs(layer.groups)}"))
        for group in layer.groups if len(layer.groups) > 1 else ():
            branch.add(safe_text(_group_text(group)))
    print_table(tree)
    if ends := manifest.get("memberships"):
        print_line(safe_text(f"{ends[0].upper()}{ends[1:]}."))
    if not layers:
        cut = json.loads(model.content("architecture.json"))  # without the costs of each group, which only a whole has
        remedy = "its branches are shown by its card.md and by --figure" if cut else "there are no branches to show"
        log(f"this model is {'cut to some classes' if cut else 'not built from layers of groups'}: {remedy}")
        return
    if structure is not None:
        told = manifest.get("branches") or lazy.branching.summary(structure, learned=bool(manifest.get("distillation")))
        print_line(safe_text(f"{told[0].upper()}{told[1:]}."))
        print_table(table(("layer", "nodes", "of", "groups", "density"), map(_layer_row, structure.layers)))
    clusters = sorted({cluster for layer in layers for group in layer.groups for cluster in group.clusters})
    if len(clusters) > 1 and (structure is None or structure.is_branched):
        rows = [_cluster_row(cluster, layers) for cluster in clusters]
        print_table(table(("cluster", "nodes per layer", "parameters", "MACs", "shared MACs", "classes"), rows))


def _write_diagram(model: "ExportedModel", path: Path) -> None:
    """Draw the architecture of an exported model to a file, atomically."""
    architecture = json.loads(model.content("architecture.json"))
    if not architecture:
        fail(USAGE, f"{model.folder} is not built from layers of groups, so there is no architecture to draw")
    figure = lazy.plots.figure_architecture(architecture, model.class_names)
    description = f"architecture of {model.manifest['name']}"
    with whole_file(path) as part:
        if path.suffix.lower() == ".png":
            lazy.plots.to_png(figure, part)
        else:
            svg = lazy.plots.standalone(lazy.plots.to_svg(figure, description=description))
            part.write_text(svg, encoding="utf-8")
    log(f"wrote {path}")


def _layer_row(layer: "LayerStructure") -> tuple[object, ...]:
    dense = "" if layer.dense_nodes is None else f"{layer.dense_nodes:,}"
    return layer.name, f"{layer.nodes:,}", dense, layer.groups, f"{layer.density:.3g}"


def _cluster_row(cluster: int, layers: Sequence["LayerOutline"]) -> tuple[object, ...]:
    """Return the table row of one cluster.

    A group that several clusters share counts fully in the row of each of them, so rows add up to more than the
    network; the column of shared MACs says how much of a row that is.
    """
    members = [[group for group in layer.groups if cluster in group.clusters] for layer in layers]
    groups = [group for layer in members for group in layer]
    widths = " ".join(str(sum(group.width for group in layer)) for layer in members if layer)
    macs = sum(group.macs for group in groups)
    exclusive = sum(group.macs for group in groups if group.clusters == (cluster,))
    classes = [name for group in groups for name in group.classes]
    parameters = sum(group.parameters for group in groups)
    return cluster, widths, f"{parameters:,}", f"{macs:,}", f"{macs - exclusive:,}", _listed(classes)


def _group_text(group: "GroupOutline") -> str:
    if not group.clusters and group.constant:  # of a layer with several groups
        return f"constant: {_costs([group])}, reads nothing" + (f"; {_listed(group.classes)}" if group.classes else "")
    if not group.clusters:  # of a graph in which some layers have no masks
        return f"without masks: {_costs([group])}, reads {count_of(group.reads, 'node')}"
    numbers = " ".join(map(str, group.clusters))
    classes = f"; {_listed(group.classes)}" if group.classes else ""
    plural, reads = "s" if len(group.clusters) > 1 else "", count_of(group.reads, "node") if group.reads else "nothing"
    return f"cluster{plural} {numbers}: {_costs([group])}, reads {reads}{classes}"


def _costs(groups: Sequence["GroupOutline"]) -> str:
    nodes, parameters, macs = (sum(getattr(g, name) for g in groups) for name in ("width", "parameters", "macs"))
    costs = count_of(nodes, "node"), count_of(parameters, "parameter"), count_of(macs, "MAC")
    return ", ".join(costs)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_CLASSES_LISTED} more" if len(names) > MAX_CLASSES_LISTED else ""
    return ", ".join(names[:MAX_CLASSES_LISTED]) + more


def _best(probabilities: Iterable[float], names: Sequence[str], top: int) -> list[tuple[str, float]]:
    return sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])[:top]
