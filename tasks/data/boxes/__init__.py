"""Boxes of a data set: tables of them, annotation files, repairs."""
