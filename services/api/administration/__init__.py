"""Routes beside those of running studies: deleting and restoring them, sharing them with teams, the audit log."""
