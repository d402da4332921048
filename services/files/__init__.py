"""Files of a study: its folder, shared storage, and the error for a full disk."""
