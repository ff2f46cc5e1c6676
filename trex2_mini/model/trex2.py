"""TRex2: the four parts under one roof.

    images --encode_images--> ImageFeatures --(once an image)--+
    names  --encode_text----> T [C, D] ------------------------+-> prompts [B, C, D] --decode--> DecoderOutput
    boxes, points on features --encode_visual--> V [B, C, D] --+

Late fusion: nothing flows back from the prompts to the image features, so prompting again touches only the last two
arrows.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from trex2_mini.config import ModelConfig
from trex2_mini.model.box_decoder import BoxDecoder, DecoderOutput
from trex2_mini.model.denoising import Denoising, DenoisingQueries
from trex2_mini.model.image_encoder import ImageEncoder, ImageFeatures
from trex2_mini.model.text_prompt import TextPromptEncoder
from trex2_mini.model.visual_prompt import RegionPrompts, VisualPromptEncoder


class TRex2(nn.Module):
    """The model. Its backbone and text tower start from ImageNet and CLIP weights where the configuration names them
    (`swin_*`; this needs a network or a cache, and a ValueError says so); random weights only with `pretrained=False`.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True):
        super().__init__()
        self.config = config
        shape = {"dim": config.dim, "heads": config.heads, "levels": len(config.strides), "points": config.points}
        self.image_encoder = ImageEncoder(config, pretrained)
        self.visual_prompt_encoder = VisualPromptEncoder(
            **shape, blocks=config.prompt_blocks, ffn_dim=config.prompt_ffn_dim
        )
        self.text_prompt_encoder = TextPromptEncoder(config.text, config.dim, pretrained)
        self.box_decoder = BoxDecoder(
            **shape, ffn_dim=config.ffn_dim, layers=config.decoder_layers, num_queries=config.num_queries
        )
        self.denoising = Denoising(config.dim)

    def encode_images(self, images: Sequence[Tensor]) -> ImageFeatures:
        """images: each [3, h, w], RGB in 0..1; sizes may differ."""
        return self.image_encoder(images)

    def encode_text(self, names: Sequence[str]) -> Tensor:
        """C names or short phrases -> T [C, D]."""
        return self.text_prompt_encoder(names)

    def encode_visual(self, features: ImageFeatures, prompts: RegionPrompts) -> Tensor:
        """Boxes and points on the images -> V [B, C, D]."""
        return self.visual_prompt_encoder(features, prompts)

    def decode(
        self,
        features: ImageFeatures,
        prompts: Tensor,
        prompt_mask: Tensor | None = None,
        denoising: DenoisingQueries | None = None,
        auxiliary: bool = False,
    ) -> DecoderOutput:
        """prompts [B, C, D] (or [C, D], the same for every image) -> logits [B, Q, C], boxes [B, Q, 4]
        cxcywh in 0..1."""
        if prompts.ndim == 2:
            prompts = prompts.expand(len(features), -1, -1)
        if prompts.ndim != 3 or prompts.shape[::2] != (len(features), self.config.dim) or not prompts.shape[1]:
            raise ValueError(
                f"expected prompts of shape [{len(features)}, C >= 1, {self.config.dim}], got {tuple(prompts.shape)}"
            )
        return self.box_decoder(features, prompts, prompt_mask, denoising, auxiliary)
