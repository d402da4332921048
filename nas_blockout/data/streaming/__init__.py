"""Image files: how one is read, and how a split of them becomes batches without being held in memory."""

from nas_blockout.data.streaming.image_files import MEASURED_IMAGES, MEMORY_BYTES, ImageFiles, StreamedPart, decode

__all__ = ["MEASURED_IMAGES", "MEMORY_BYTES", "ImageFiles", "StreamedPart", "decode"]
