"""The command line: one module a group of commands, `main` for the program itself."""
