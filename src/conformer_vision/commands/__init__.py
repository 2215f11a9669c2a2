"""The subcommands of the command line: each module makes its parser and runs what was parsed."""
