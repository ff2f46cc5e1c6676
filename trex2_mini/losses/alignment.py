"""Region-level contrastive alignment (eq. 9): visual prompts gather round the text embedding of their category.

Ours, where the paper is silent: similarities are scaled by 1/sqrt(D) like the labels of eq. 8 (LayerNorm makes v and t
of length sqrt(D)), and a batch's repeated categories share one text embedding, so that a category is never its own
negative. The t_j are those of the batch's categories and of the iteration's sampled negative names.
"""

import math

import torch.nn.functional as F
from torch import Tensor


def alignment_loss(visual: Tensor, text: Tensor, category: Tensor, counts: Tensor | None = None) -> Tensor:
    """visual [K, D]: v_i; text [C, D]: the t_j, each category once; category [K]: the column of each v_i's t_i;
    counts [K, C]: False where t_j may name v_i's objects too, and so is no negative (None: all are).

    Returns a scalar, 0 for K = 0.
    """
    if not len(visual):
        return visual.sum() * 0.0
    similarity = visual @ text.T / math.sqrt(visual.shape[1])
    return F.cross_entropy(similarity if counts is None else similarity.masked_fill(~counts, -math.inf), category)
