"""Data sets, batches and transforms."""
