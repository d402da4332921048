"""A module as a functional graph of ATen operations."""


class Untraceable(ValueError):
    """A network that cannot be read as a graph of layers of nodes."""
