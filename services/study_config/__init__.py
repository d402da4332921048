"""The study file: its schema, its values given on the command line, and what is checked before anything is run."""
