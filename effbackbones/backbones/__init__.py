"""Backbones: the EfficientNets and what they are made of, and any network of timm."""
