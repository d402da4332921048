"""Where images come from: one module a source, and the registry of all of them."""
