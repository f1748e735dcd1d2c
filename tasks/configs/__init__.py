"""Bundled configurations, found by their short names."""
