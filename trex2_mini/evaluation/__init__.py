"""Measuring a detector: COCO's average precision (metrics.py) under the paper's protocols (protocols.py)."""
