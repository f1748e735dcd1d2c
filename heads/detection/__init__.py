"""Heads of detection: EfficientDet, its pyramid, towers, anchors, losses and suppression."""
