"""The subcommands: a file each, with its flags and its run."""
