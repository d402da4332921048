"""A finished study as one archive that others rerun and check: `packing` writes it, `checking` reads it.

Neither imports torch: to read what somebody has sent takes a second and runs none of it.
"""

from services.bundle.checking import Checked, check
from services.bundle.packing import Packed, pack
from services.bundle.private_texts import BundleError

__all__ = ["BundleError", "Checked", "Packed", "check", "pack"]
