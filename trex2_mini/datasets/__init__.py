"""Data: genuine COCO-format sets (coco.py) and the embedded emoji benchmark (emoji.py)."""
