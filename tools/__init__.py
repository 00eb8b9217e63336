"""Scripts that make the files this repository ships; none of them is installed with the package."""
