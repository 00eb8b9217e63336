"""Labels of the user's own."""
