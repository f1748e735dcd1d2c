"""Measurements against other libraries; ``python -m benchmarks --list`` names them."""
