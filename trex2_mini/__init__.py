"""trex2_mini: an open, compact T-Rex2 (arXiv 2403.14610), detection from text prompts, visual prompts, or both.

from trex2_mini import Detector
detector = Detector.load()                                   # the small checkpoint that comes with the repository
image = detector.encode("photo.jpg")                         # once
detector.detect(image, text="cat, dog")                      # as often as wanted
detector.detect(image, boxes={"coin": [[10, 10, 60, 60]]})
"""

__version__ = "0.1.0"

__all__ = [
    "Detections",
    "Detector",
    "PhotoIndex",
    "PromptBank",
    "PromptCanvas",
    "PromptStudio",
    "TRex2",
    "__version__",
    "load_tuned",
    "preset",
    "search",
    "tune",
]

_HOME = {
    "Detector": "detector",
    "Detections": "detections",
    "PhotoIndex": "search.index",
    "PromptBank": "prompt_bank",
    "PromptCanvas": "interactive.canvas",
    "PromptStudio": "interactive.studio",
    "TRex2": "model.trex2",
    "load_tuned": "weights.tuning",
    "preset": "config",
    "search": "search.rank",
    "tune": "weights.tuning",
}


def __getattr__(name: str):
    """Import on first use, so that `python -m trex2_mini --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'trex2_mini' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"trex2_mini.{_HOME[name]}"), name)
