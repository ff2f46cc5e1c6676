"""Data: sets in COCO format and how they are opened (registry.py), scenes made on the fly (scenes/), the embedded
benchmark (emoji/)."""
