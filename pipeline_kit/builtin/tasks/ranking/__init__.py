"""Documents by their relevance for a query."""
