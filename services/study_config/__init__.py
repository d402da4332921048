"""The study file: its schema, the keys that ``--set`` changes, and the checks before anything is run."""
