"""Heads of detection: EfficientDet, RetinaNet, SSDLite, their pyramids, towers, anchors, losses and suppression."""
