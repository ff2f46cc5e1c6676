"""Text prompt encoder: CLIP's text tower; the end-of-text output is T, one vector for each name or phrase (spec section
1).

The tower is open_clip's. `swin_*` take CLIP-B's weights; `nano` has a small tower of the same kind whose weights come
with our checkpoint. Ours, where the paper is silent: a linear projection to D followed by LayerNorm, so that T and V
live on one scale. Each phrase is encoded alone (late fusion, spec section 9), so its embedding is cached for as long as
the weights stay as they are; the cache begins anew when it has KEPT phrases, so that a long-running process does not
grow.
"""

import warnings
from collections.abc import Sequence

import open_clip
import torch
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from trex2_mini.config import TextTowerConfig
from trex2_mini.names import check_names

KEPT = 20_000  # phrases; 40 MB at D = 256


class TextPromptEncoder(nn.Module):
    """Names -> T [C, D]."""

    def __init__(self, config: TextTowerConfig, dim: int, pretrained: bool):
        super().__init__()
        self.config = config
        self.tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.width,
            act_layer=QuickGELU if config.pretrained == "openai" else nn.GELU,
        )
        if pretrained and config.pretrained:
            self.tower.load_state_dict(_clip_text_weights(config.pretrained))
        self.projection = nn.Linear(config.width, dim)
        self.norm = nn.LayerNorm(dim)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=config.context_length)
        self._tokens: dict[str, tuple[Tensor, int]] = {}  # and how many of them there are
        self._cache: dict[str, Tensor] = {}
        self._cached_for: tuple | None = None

    def forward(self, names: Sequence[str]) -> Tensor:
        """names: C phrases -> [C, D]. Without gradients, embeddings are taken from the cache where the weights are
        unchanged."""
        names = check_names(names)
        if torch.is_grad_enabled() and self.training:
            return self._encode(names)
        state = tuple((_version(p), p.data_ptr(), p.device, p.dtype) for p in self.parameters())
        if state != self._cached_for:
            self._cache, self._cached_for = {}, state
        new = [name for name in dict.fromkeys(names) if name not in self._cache]
        if len(self._cache) + len(new) > KEPT:
            self._cache, new = {}, list(dict.fromkeys(names))
        for start in range(0, len(new), 256):
            chunk = new[start : start + 256]
            with torch.no_grad():
                self._cache.update(zip(chunk, self._encode(chunk), strict=True))
        return torch.stack([self._cache[name] for name in names])

    def _encode(self, names: list[str]) -> Tensor:
        if len(self._tokens) > KEPT:  # the tokenizer keeps every word it has met
            self._tokens, self.tokenizer = {}, open_clip.SimpleTokenizer(context_length=self.config.context_length)
        for name in names:
            if name not in self._tokens:
                length = len(self.tokenizer.encode(name)) + 2  # with the start and the end
                self._tokens[name] = self.tokenizer([name])[0], min(length, self.config.context_length)
                if length > self.config.context_length:
                    warnings.warn(
                        f"{name!r} has {length} tokens, of which the text tower reads {self.config.context_length}: "
                        "its end is not read; say it shorter",
                        stacklevel=2,
                    )
        device = self.projection.weight.device
        tokens = torch.stack([self._tokens[name][0] for name in names]).to(device)  # (C, context)
        lengths = [self._tokens[name][1] for name in names]
        end = torch.tensor(lengths, device=device) - 1  # where the end-of-text token stands
        length = max(lengths)  # the tower is causal: what follows the longest phrase is idle and left out
        tower = self.tower
        x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))  # (C, length, width)
        return self.norm(self.projection(x[torch.arange(len(names), device=device), end] @ tower.text_projection))


def _version(parameter: Tensor) -> int:
    """How often it was changed in place. Tensors made in inference mode do not count, and a model built there is not
    trained."""
    return -1 if parameter.is_inference() else parameter._version


def _clip_text_weights(pretrained: str) -> dict[str, Tensor]:
    """The text half of open_clip's ViT-B-16. ValueError says what to do when its weights cannot be had."""
    try:
        clip = open_clip.create_model("ViT-B-16", pretrained=pretrained)
    except Exception as error:  # open_clip and huggingface_hub raise many kinds when the network is missing
        raise ValueError(
            f"the CLIP ViT-B-16 weights {pretrained!r} could not be loaded ({type(error).__name__}: {error}). "
            "Check the network or the Hugging Face cache, or ask for random weights: "
            "TRex2(config, pretrained=False), or --random-weights on the command line."
        ) from error
    return {
        key: value for key, value in clip.state_dict().items() if not key.startswith("visual.") and key != "logit_scale"
    }
