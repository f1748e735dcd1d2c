"""Transforms: samples brought to the size that the network gets, in training at random."""
