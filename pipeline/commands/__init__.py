"""The terminal: one module per group of commands. The only place for typer, print and exit codes."""
