"""Step time as a paired comparison: what a strategy costs, with an interval."""
