"""Masks of a data set: files and their formats, painting from outlines, counting."""
