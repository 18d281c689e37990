"""Whether a query uses the vector index, and if not, why: `sql` for statements, `calls` for the functions."""
