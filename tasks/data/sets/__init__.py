"""Data sets: one file for each format that is read."""
