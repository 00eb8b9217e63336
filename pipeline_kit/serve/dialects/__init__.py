"""The routes that clients know, a file for each kind of client."""
