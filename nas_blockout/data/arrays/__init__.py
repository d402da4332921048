"""Images that a program holds: arrays, tensors, datasets, loaders; read once, known by the hash of their content."""

from nas_blockout.data.arrays.array_data import ArrayData
from nas_blockout.data.arrays.array_files import dimensions_of, read

__all__ = ["ArrayData", "dimensions_of", "read"]
