"""Small vision transformers with ViT's or LLaMA's blocks and any norm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from syncbn.models.common import Norm, check_images, check_sizes
from syncbn.models.transformer import LlamaBlock, PerToken, ViTBlock
from syncbn.models.vit_options import ViTOptions as Options
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import norm_layer


class ViT(nn.Module):
    """A vision transformer: patches as tokens, blocks, a norm, the mean over tokens, a linear classifier.

    Input (N, in_channels, *image_size) of a floating dtype, output (N, num_classes) logits. With `ViTBlock`, a learned
    position embedding is added to each token; `LlamaBlock` uses rotary positions in row-major order instead. Train and
    eval differ in dropout, and in norms with running statistics.

    Args:
        block: `ViTBlock` or `LlamaBlock`.
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels. It sees each token as a
            sample, (N·L, C): "layer", "rms", "dynamic_tanh" and "dynamic_erf" are those usual in transformers.
        num_classes: number of logits.
        in_channels: channels of the input images.
        image_size: height and width of the images in pixels; one number for a square.
        patch_size: side of a patch in pixels.
        dim: C, the channels of a token.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: share of a block's output that training drops.

    Raises:
        ValueError: an unknown norm, a size below 1, images not divisible into patches, heads that don't divide dim
            (into even parts, for rotary positions), or, in the forward pass, an input of the wrong shape.
        TypeError: in the forward pass, an input of an integer dtype.

    Source: Dosovitskiy et al., An Image Is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929; the mean
    instead of a class token: appendix D.3.
    """

    head = "fc"  # reinitialized by `load_weights` for a different number of classes

    def __init__(
        self,
        block: type[ViTBlock | LlamaBlock],
        norm: Norm = "layer",
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=min(height, width))
        check_arguments(Options, locals())
        if height % patch_size or width % patch_size:
            raise ValueError(f"image_size must be whole patches of {patch_size}×{patch_size}, got {height}×{width}")
        rotary = block is LlamaBlock
        if dim % (2 * heads if rotary else heads):
            even = " an even number of" if rotary else ""
            raise ValueError(f"dim must give each of {heads} heads{even} whole channels, got {dim}")
        norm = norm_layer(norm)
        self.in_channels = in_channels
        self.image_size = (height, width)

        tokens = height * width // patch_size**2
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.positions = None if rotary else nn.Parameter(torch.zeros(tokens, dim))
        self.blocks = nn.Sequential(*(block(dim, heads, norm, dropout) for _ in range(depth)))
        self.norm = PerToken(norm(dim))
        self.fc = nn.Linear(dim, num_classes)
        self._initialize()

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        if x.shape[2:] != self.image_size:
            raise ValueError(
                f"expected images of {self.image_size} pixels, got {tuple(x.shape[2:])}; set image_size= to match"
            )
        x = self.patches(x).flatten(2).transpose(1, 2)  # (N, L, C)
        if self.positions is not None:
            x = x + self.positions
        x = self.norm(self.blocks(x))
        return self.fc(x.mean(dim=1))

    def _initialize(self) -> None:
        # Scaled by layer size, as in the authors' code: normal(0, 0.02) is too small for few channels.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)


def vit(
    norm: Norm = "layer",
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    patch_size: int = Options.patch_size,
    dim: int = Options.dim,
    depth: int = Options.depth,
    heads: int = Options.heads,
    dropout: float = Options.dropout,
) -> ViT:
    """A small ViT. Options as for `ViT`; ViT-S/16 is image_size=224, patch_size=16, dim=384, depth=12."""
    return ViT(ViTBlock, norm, num_classes, in_channels, image_size, patch_size, dim, depth, heads, dropout)


def llama_vit(
    norm: Norm = "rms",
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    patch_size: int = Options.patch_size,
    dim: int = Options.dim,
    depth: int = Options.depth,
    heads: int = Options.heads,
    dropout: float = Options.dropout,
) -> ViT:
    """A small ViT with LLaMA's blocks: RMS norm, rotary positions, SwiGLU. Options as for `ViT`."""
    return ViT(LlamaBlock, norm, num_classes, in_channels, image_size, patch_size, dim, depth, heads, dropout)
