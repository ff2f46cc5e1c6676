"""Data engines: pictures without full annotation become training sets in COCO format (paper, section 3.4; its tables 6 and 10).

    TextEngine    captions -> noun phrases -> boxes by text prompts -> similarity filter -> phrase-box pairs          engines.py, phrases.py
    VisualEngine  boxes without names -> names -> images with enough instances -> the missing boxes by visual prompts  engines.py
    run_engine    either of them over many pictures: in shards, resumable, by several processes                        shards.py
    pseudo_label_quality   precision and recall of what came out, where the truth is known                             quality.py

Where the paper uses other models we use our own: Grounding DINO's boxes are our detector's; the CLIP score of a region and a phrase is the phrase's
probability in our region classification (V of the region, T of the phrase and of its rivals); and TAP's names come from there too. So an engine is as
good as the checkpoint that it starts from, and its filter shares the detector's errors, as CLIP's would not.
"""

from .engines import TextEngine, VisualEngine
from .phrases import frequent_phrases, noun_phrases
from .quality import pseudo_label_quality
from .shards import run_engine

__all__ = ["TextEngine", "VisualEngine", "frequent_phrases", "noun_phrases", "pseudo_label_quality", "run_engine"]
