"""Verbs: what a command can be told to do, a file each, and what surrounds them."""
