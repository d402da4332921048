"""``nas-blockout predict`` and what `show` says of a folder: exported models used and seen."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.tree import Tree

from services.cli.console import (
    NOT_FOUND,
    USAGE,
    JsonOption,
    fail,
    log,
    print_json,
    print_line,
    print_table,
    safe_text,
    table,
)

MOST_CLASSES = 8
FIGURES = (".svg", ".png")

ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files, such as PNG or JPEG.")]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    images: ImagesArgument,
    top: Annotated[int, typer.Option(min=1, help="Most classes to show for each image.")] = 3,
    form: Annotated[Literal["pt2", "onnx"], typer.Option(help="Which form of the model computes.")] = "pt2",
    as_json: JsonOption = False,
) -> None:
    """Classify image files with an exported model, whose files are checked by their hashes before any is loaded.

    An image of another size is scaled until it covers the model's, and its middle is cut out. The probabilities are the
    softmax of the logits and not calibrated.
    """
    import torch

    from nas_blockout.data.image_io import read_image
    from nas_blockout.export.prediction import ExportedModel

    _require_folder(model)
    for path in images:
        if not path.is_file():
            fail(NOT_FOUND, f"there is no image file {path}")
    opened = ExportedModel.open(model)
    asked = opened.preprocessing
    if asked["channels"] not in (1, 3):
        fail(USAGE, f"{model} takes images of {asked['channels']} channels; image files have 1 or 3")
    size = (asked["height"], asked["width"])
    batch = torch.stack([read_image(path, asked["channels"], size) for path in images])
    probabilities = opened.logits(batch, form=form).softmax(1)
    found = [_best(row, opened.class_names, top) for row in probabilities.tolist()]
    if as_json:
        documents = [
            {"image": str(path), "classes": [{"name": name, "probability": p} for name, p in best]}
            for path, best in zip(images, found, strict=True)
        ]
        print_json({"model": str(model), "form": form, "predictions": documents})
        return
    for path, best in zip(images, found, strict=True):
        print_line(f"{path}: " + ", ".join(f"{name} {p:.1%}" for name, p in best))


def show_model(folder: Path, *, as_json: bool, figure: Path | None = None) -> None:
    """Show an exported model: what it is, and its layers and groups as a tree, or as a diagram in a file too."""
    from nas_blockout.export.model_summary import outline
    from nas_blockout.export.prediction import ExportedModel

    if figure is not None and figure.suffix.lower() not in FIGURES:
        fail(USAGE, f"a figure's file must end in {' or '.join(FIGURES)}, got {figure}")
    model = ExportedModel.open(folder)
    if figure is not None:
        _write_diagram(model, figure)
    layers, manifest = outline(model), model.manifest
    accuracy = manifest.get("test_accuracy")
    if as_json:
        facts = {"name": manifest["name"], "test_accuracy": accuracy, "class_names": model.class_names}
        print_json({**facts, "layers": [asdict(layer) for layer in layers]})
        return
    tested = "" if accuracy is None else f", test accuracy {accuracy:.2%}"
    tree = Tree(safe_text(f"{manifest['name']}: {len(model.class_names)} classes{tested}"))
    for layer in layers:
        name = f"{layer.name}: {_costs(layer.groups)}"
        stem = tree.add(safe_text(name))
        for group in layer.groups if len(layer.groups) > 1 else ():
            stem.add(safe_text(_described(group)))
    print_table(tree)
    if not layers:
        log("it is not built from layers of groups, so there are no branches to show")
        return
    clusters = sorted({cluster for layer in layers for group in layer.groups for cluster in group.clusters})
    if len(clusters) > 1:
        rows = [_branch(cluster, layers) for cluster in clusters]
        print_table(table(("cluster", "nodes by layer", "parameters", "MACs", "of them shared", "classes"), rows))


def _write_diagram(model: Any, path: Path) -> None:
    """Draw the architecture of an exported model into a file, which appears whole or not at all."""
    from nas_blockout.atomic_files import whole_file
    from nas_blockout.plots import figure_architecture, standalone, to_png, to_svg

    architecture = json.loads(model.content("architecture.json"))
    if not architecture:
        fail(USAGE, f"{model.folder} is not built from layers of groups, so there is no architecture to draw")
    drawn = figure_architecture(architecture, model.class_names)
    said = f"architecture of {model.manifest['name']}"

    with whole_file(path) as part:
        if path.suffix.lower() == ".png":
            to_png(drawn, part)
        else:
            part.write_text(standalone(to_svg(drawn, description=said)), encoding="utf-8")
    log(f"wrote {path}")


def _branch(cluster: int, layers: Sequence[Any]) -> tuple[object, ...]:
    """Return a row on one cluster: the groups that belong to it; what it shares with others counts fully."""
    own = [[group for group in layer.groups if cluster in group.clusters] for layer in layers]
    groups = [group for layer in own for group in layer]
    widths = " ".join(str(sum(group.width for group in layer)) for layer in own if layer)
    macs = sum(group.macs for group in groups)
    alone = sum(group.macs for group in groups if group.clusters == (cluster,))
    classes = [name for group in groups for name in group.classes]
    parameters = sum(group.parameters for group in groups)
    return cluster, widths, f"{parameters:,}", f"{macs:,}", f"{macs - alone:,}", _listed(classes)


def _described(group: Any) -> str:
    where = (
        f"clusters {' '.join(map(str, group.clusters))}" if len(group.clusters) > 1 else f"cluster {group.clusters[0]}"
    )
    held = f"; {_listed(group.classes)}" if group.classes else ""
    return f"{where}: {_costs([group])}, reads {group.reads} nodes{held}"


def _costs(groups: Sequence[Any]) -> str:
    nodes, parameters, macs = (sum(getattr(g, name) for g in groups) for name in ("width", "parameters", "macs"))
    return f"{nodes} nodes, {parameters:,} parameters, {macs:,} MACs"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return ", ".join(names[:MOST_CLASSES]) + more


def _best(probabilities: Iterable[float], names: Sequence[str], top: int) -> list[tuple[str, float]]:
    return sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])[:top]


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        fail(NOT_FOUND, f"there is no folder {folder}; name one that `nas-blockout export` wrote")
