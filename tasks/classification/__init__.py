"""Image classification: the task, its scores, files, examples and report."""
