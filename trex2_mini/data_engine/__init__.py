"""Data engines: pictures without full annotation become training sets in COCO format (paper, section 3.4; its tables 6
and 10).

    TextEngine    captions -> noun phrases -> boxes by text prompts -> similarity filter -> phrase-box pairs
    engines.py, phrases.py
    VisualEngine  boxes without names -> names -> images with enough instances -> the missing boxes by visual prompts
    engines.py
    run_engine    either of them over many pictures: in shards, resumable, here or by actors on Ray
                  shards.py
    pseudo_label_quality   precision and recall of what came out, where the truth is known
                           quality.py

Where the paper uses other models we use our own: Grounding DINO's boxes are our detector's; the CLIP score of a region
and a phrase is the cosine of V (the region as a visual prompt) and T (the phrase); TAP's names are our region
classification. So an engine is as good as the checkpoint that it starts from, and its filter shares the detector's
errors, as CLIP's would not. Captions as a whole are not filtered (the paper: CLIP score > 0.8).
"""

from trex2_mini.data_engine.engines import TextEngine, VisualEngine
from trex2_mini.data_engine.phrases import frequent_phrases, noun_phrases
from trex2_mini.data_engine.quality import pseudo_label_quality
from trex2_mini.data_engine.shards import run_engine

__all__ = ["TextEngine", "VisualEngine", "frequent_phrases", "noun_phrases", "pseudo_label_quality", "run_engine"]
