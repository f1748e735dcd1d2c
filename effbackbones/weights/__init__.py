"""Weights from anywhere: sources, the dialects of files, reading, and loading with a report."""
