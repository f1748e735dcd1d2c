"""Heads: networks that attach to feature maps. They import effbackbones and nothing else of the house."""
