"""The outside world: each outside library is imported by exactly one file here."""
