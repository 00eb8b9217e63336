"""Model folders that ship with the package."""
