"""Several tasks on one backbone: the task made of them, its scores and report."""
