"""Heads of segmentation: U-Net and its siblings, and their losses."""
