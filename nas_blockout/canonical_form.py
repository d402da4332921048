"""The canonical form of groups in clusters: the same for every numbering of the clusters and every order of the groups.

It knows groups only as plain tuples, so that the architecture value can be named by it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = tuple[tuple[int, ...], int, tuple[int, ...]]  # of a group: its clusters, its width and its classes
Layers = Sequence[Sequence[Row]]  # the groups of every layer, from the image to the classes
Partition = tuple[tuple[int, ...], ...]


def canonical_form(layers: Layers) -> list[list[list[Any]]]:
    """Return the smallest serialized form over all numberings of the clusters that are used.

    Clusters are told apart by refinement (which groups they belong to, and with whom); only those that refinement
    cannot tell apart are permuted, one cell at a time, and of symmetric ones a single one is tried, as in McKay's
    canonical labeling.

    Args:
        layers: The groups of every layer. Which layer reads which is no matter: every layer is told from every other,
            so that no renumbering of the clusters exchanges two of them.

    Returns:
        For every layer its groups, sorted, each as the list of its clusters, its width and the list of its classes.

    References:
        McKay. Practical Graph Isomorphism. Congressus Numerantium 30, 1981.
    """
    return _Form(layers).smallest()


class _Form:
    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        clusters = sorted({cluster for groups in layers for row in groups for cluster in row[0]})
        self.start: Partition = (tuple(clusters),)
        # The rows of each layer that a cluster belongs to, asked for again and again while its cell is refined.
        self.rows_of = {
            cluster: [[row for row in groups if cluster in row[0]] for groups in layers] for cluster in clusters
        }

    def smallest(self) -> list[list[list[Any]]]:
        return self._smallest(self._refine(self.start))

    def _smallest(self, cells: Partition) -> list[list[list[Any]]]:
        # The first cell that refinement left undecided. Its clusters are singled out one by one; the smallest form
        # wins.
        tied = next((position for position, cell in enumerate(cells) if len(cell) > 1), None)
        if tied is None:
            return self._serialize({cell[0]: number for number, cell in enumerate(cells) if cell})
        cell = cells[tied]
        if self._interchangeable(cell):
            return self._smallest((*cells[:tied], *((cluster,) for cluster in cell), *cells[tied + 1 :]))
        branches = []
        for chosen in self._one_of_each_orbit(cells, cell):
            rest = tuple(cluster for cluster in cell if cluster != chosen)
            branches.append(self._smallest(self._refine((*cells[:tied], (chosen,), rest, *cells[tied + 1 :]))))
        return min(branches)

    def _one_of_each_orbit(self, cells: Partition, cell: tuple[int, ...]) -> list[int]:
        """Return the clusters of a cell to try, one of each orbit of the symmetries that keep all cells.

        A symmetry maps the numberings that begin with one cluster of an orbit onto those that begin with another, and
        both have the same smallest form. Without this, k clusters in symmetric branches cost k! numberings.
        """
        try:
            import igraph  # its BLISS finds symmetries; imported here, since most processes never meet one
        except ImportError:  # a machine with an installation of its own: the same name, only slower
            return list(cell)
        # As a bipartite graph: a vertex for every cluster and every group, an edge where a cluster has a group. Colors
        # keep cells apart, and groups of another layer, width or classes: a symmetry may only exchange what is alike.
        groups = [(number, row) for number, rows in enumerate(self.layers) for row in rows]
        kinds = sorted({(number, width, classes) for number, (_, width, classes) in groups})
        numbers = {kind: len(cells) + number for number, kind in enumerate(kinds)}
        clusters = {cluster: vertex for vertex, cluster in enumerate(cluster for each in cells for cluster in each)}
        edges = [
            (clusters[cluster], len(clusters) + vertex) for vertex, (_, row) in enumerate(groups) for cluster in row[0]
        ]
        colors = [number for number, each in enumerate(cells) for _ in each]
        colors += [numbers[number, width, classes] for number, (_, width, classes) in groups]
        graph = igraph.Graph(len(colors), edges)
        symmetries = graph.automorphism_group(color=colors)  # generators of all of them
        images = [pair for symmetry in symmetries for pair in enumerate(symmetry)]
        # Vertices that some symmetry maps onto each other are connected: the components are the orbits.
        orbits = igraph.Graph(len(colors), images).connected_components().membership
        return list({orbits[clusters[cluster]]: cluster for cluster in reversed(cell)}.values())

    def _interchangeable(self, cell: Iterable[int]) -> bool:
        """Whether all clusters of a cell belong to exactly the same groups, so that their order cannot matter."""
        members = set(cell)
        # Permuting clusters that always occur together changes nothing, so one order stands for all k! of them.
        groups = (set(row[0]) & members for rows in self.layers for row in rows)
        return all(shared in (set(), members) for shared in groups)

    def _refine(self, cells: Partition) -> Partition:
        while True:
            color = {cluster: number for number, cell in enumerate(cells) for cluster in cell}
            split: list[tuple[int, ...]] = []
            for cell in cells:
                if len(cell) == 1:
                    split.append(cell)
                    continue
                by_signature: dict[str, list[int]] = {}  # by JSON text, since lists cannot be keys
                for cluster in cell:
                    by_signature.setdefault(json.dumps(self._signature(cluster, color)), []).append(cluster)
                split.extend(tuple(by_signature[signature]) for signature in sorted(by_signature))
            if len(split) == len(cells):  # a round that splits nothing is the last
                return cells
            cells = tuple(split)

    def _signature(self, cluster: int, color: Mapping[int, int]) -> list[Any]:
        return [
            sorted(
                [width, list(classes), sorted(color[other] for other in members)] for members, width, classes in rows
            )
            for rows in self.rows_of[cluster]
        ]

    def _serialize(self, number: Mapping[int, int]) -> list[list[list[Any]]]:
        return [
            sorted(
                [sorted(number[cluster] for cluster in members), width, list(classes)]
                for members, width, classes in rows
            )
            for rows in self.layers
        ]
