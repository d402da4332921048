"""Files that a study leaves: its folder, shared storage, and what happens when a disk is full."""
