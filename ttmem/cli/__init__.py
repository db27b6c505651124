"""The commands: the only code that prints, reads options and turns errors into exit codes."""
