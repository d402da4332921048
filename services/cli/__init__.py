"""The command line: one module per group of commands; `main` puts them together, `console` holds what they share."""
