"""Semantic segmentation: the task, its scores, files, examples, checks and report."""
