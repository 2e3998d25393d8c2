"""Transformer blocks of ViT and LLaMA. Tokens are (N, L, C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncbn.norm.core.registry import NormFactory


class PerToken(nn.Module):
    """Norm of C channels over tokens (N, L, C), with each token a sample: the norm sees (N·L, C).

    So "layer" and "rms" normalize each token over its channels, as usual in transformers, and "sync" each channel over
    all tokens of all ranks.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q·kᵀ / √d)·v over the tokens of a sample. (N, L, C) -> (N, L, C).

    Source: Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, section 3.2.
    """

    def __init__(self, dim: int, heads: int, bias: bool, rotary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        if self.rotary:
            q, k = rotate(q), rotate(k)
        y = F.scaled_dot_product_attention(q, k, v)  # (N, heads, L, C / heads)
        return self.out(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding: at position m, rotate the pair (x[2i], x[2i+1]) by the angle m·base^(-2i/D).

    The product of a rotated query and a rotated key then depends only on their distance.

    Args:
        x: (..., L, D) with D even.
        base: base of the angles' geometric progression.

    Source: Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864, section 3.2.2.
    """
    length, dim = x.shape[-2:]
    wide = torch.promote_types(x.dtype, torch.float32)  # half precision can't tell large angles apart
    frequencies = base ** -(torch.arange(0, dim, 2, device=x.device, dtype=wide) / dim)
    angles = torch.arange(length, device=x.device, dtype=wide)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class SwiGLU(nn.Module):
    """y = W₂(silu(W₁x) ⊙ W₃x), without biases.

    Source: Shazeer, GLU Variants Improve Transformer, 2020, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ViTBlock(nn.Module):
    """x + Attention(norm(x)), then x + MLP(norm(x)) with GELU, all with biases. (N, L, C) -> (N, L, C).

    Source: Dosovitskiy et al., An Image Is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929, equations
    2 and 3.
    """

    def __init__(self, dim: int, heads: int, norm: NormFactory, dropout: float) -> None:
        super().__init__()
        self.norm1 = PerToken(norm(dim))
        self.attention = Attention(dim, heads, bias=True, rotary=False)
        self.norm2 = PerToken(norm(dim))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class LlamaBlock(nn.Module):
    """As `ViTBlock`, with rotary positions in the attention, SwiGLU as the MLP, and no biases.

    The hidden size of SwiGLU is 8/3·C, rounded up to a multiple of 8: as many parameters as an MLP of 4·C. There is no
    mask: every token attends to all.

    Source: Touvron et al., LLaMA, 2023, https://arxiv.org/abs/2302.13971, section 2.2.
    """

    def __init__(self, dim: int, heads: int, norm: NormFactory, dropout: float) -> None:
        super().__init__()
        self.norm1 = PerToken(norm(dim))
        self.attention = Attention(dim, heads, bias=False, rotary=True)
        self.norm2 = PerToken(norm(dim))
        self.mlp = SwiGLU(dim, hidden=-(-8 * dim // 3 // 8) * 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))
