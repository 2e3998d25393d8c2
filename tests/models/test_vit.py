"""The transformers: each part against torch's own layer, complex numbers, or the formula in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.models.transformer import Attention, LlamaBlock, PerToken, SwiGLU, ViTBlock, rotate
from syncbn.models.vit import llama_vit, vit

TOKEN_NORMS = [name for name in ("layer", "rms", "dynamic_tanh", "dynamic_erf") if name in syncbn.available_norms()]


def random_parameters(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def test_the_vit_block_is_torchs_encoder_layer() -> None:
    ours = random_parameters(ViTBlock(12, 3, syncbn.norm_layer("layer"), dropout=0.0))
    theirs = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", norm_first=True, batch_first=True, dtype=torch.float64
    )
    state = ours.state_dict()
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": state["attention.qkv.weight"],
            "self_attn.in_proj_bias": state["attention.qkv.bias"],
            "self_attn.out_proj.weight": state["attention.out.weight"],
            "self_attn.out_proj.bias": state["attention.out.bias"],
            **{f"linear{i + 1}.{key}": state[f"mlp.{2 * i}.{key}"] for i in (0, 1) for key in ("weight", "bias")},
            **{f"norm{i}.{key}": state[f"norm{i}.norm.{key}"] for i in (1, 2) for key in ("weight", "bias")},
        }
    )
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def turned_by_complex_numbers(x: np.ndarray) -> np.ndarray:
    """Rotary positions by the paper's equation 34: pairs are complex numbers, positions are phases."""
    length, dim = x.shape[-2:]
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    phases = np.array([[m * 10_000 ** (-2 * i / dim) for i in range(dim // 2)] for m in range(length)])
    pairs = pairs * np.exp(1j * phases)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def test_rotary_positions_are_phases() -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    np.testing.assert_allclose(rotate(x).numpy(), turned_by_complex_numbers(x.numpy()), rtol=1e-12, atol=1e-12)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 20, 8)
    products = rotate(q) @ rotate(k).T
    for distance in range(-19, 20):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_rotary_positions_keep_half_precision_at_large_positions() -> None:
    x = torch.randn(1, 1, 3000, 8, dtype=torch.float64)
    assert rotate(x.half()).dtype == torch.float16
    torch.testing.assert_close(rotate(x.half()).double(), rotate(x), rtol=1e-2, atol=1e-2)


def llama_block(state: dict[str, Tensor], x: np.ndarray, heads: int) -> np.ndarray:
    """LLaMA's block, one head and one sample at a time, over a bare state dict."""
    w = {key: value.numpy() for key, value in state.items()}
    dim = x.shape[1]

    def rms(x: np.ndarray, at: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * w[f"{at}.norm.weight"]

    h = rms(x, "norm1")
    q, k, v = np.split(h @ w["attention.qkv.weight"].T, 3, axis=1)
    size, outputs = dim // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = turned_by_complex_numbers(q[:, part]) @ turned_by_complex_numbers(k[:, part]).T / np.sqrt(size)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        outputs.append(shares / shares.sum(axis=1, keepdims=True) @ v[:, part])
    x = x + np.concatenate(outputs, axis=1) @ w["attention.out.weight"].T
    h = rms(x, "norm2")
    gate = h @ w["mlp.gate.weight"].T
    return x + (gate / (1 + np.exp(-gate)) * (h @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T


def test_the_llama_block_is_the_papers() -> None:
    def rms(channels: int) -> nn.Module:
        return nn.RMSNorm(channels, eps=1e-5)

    block = random_parameters(LlamaBlock(12, 3, rms, dropout=0.0))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    expected = [llama_block(block.state_dict(), sample.numpy(), heads=3) for sample in x]
    np.testing.assert_allclose(block(x).detach().numpy(), np.stack(expected), rtol=1e-10)
    assert block.mlp.gate.out_features == 32  # 8/3 of 12
    assert not any(name.endswith("bias") for name, _ in block.named_parameters())


def test_attention_without_positions_does_not_know_the_order() -> None:
    order = torch.randperm(6)
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    for rotary in (False, True):
        attention = random_parameters(Attention(8, 2, bias=True, rotary=rotary))
        same = torch.allclose(attention(x[:, order]), attention(x)[:, order])
        assert same is not rotary


def test_swiglu_is_its_formula() -> None:
    layer = random_parameters(SwiGLU(3, 4))
    x = torch.randn(2, 3, dtype=torch.float64)
    gate = x @ layer.gate.weight.T
    expected = (gate * torch.sigmoid(gate) * (x @ layer.up.weight.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("norm", "oracle"),
    [
        ("layer", lambda x: nn.functional.layer_norm(x, x.shape[-1:])),
        ("rms", lambda x: nn.functional.rms_norm(x, x.shape[-1:], eps=1e-5)),
        ("sync", lambda x: (x - x.mean(dim=(0, 1))) / (x.var(dim=(0, 1), unbiased=False) + 1e-5).sqrt()),
        ("dynamic_tanh", lambda x: (0.5 * x).tanh()),
    ],
)
def test_a_norm_sees_each_token_as_a_sample(norm: str, oracle) -> None:
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(PerToken(syncbn.norm_layer(norm)(8))(x), oracle(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [vit, llama_vit])
@pytest.mark.parametrize("norm", [*TOKEN_NORMS, "sync", "group", "none"])
def test_every_norm_trains(build, norm: str) -> None:
    torch.manual_seed(0)
    factory = syncbn.norm_layer(norm, **({"groups": 4} if norm == "group" else {}))
    model = build(factory, num_classes=5, in_channels=1, image_size=8, patch_size=2, dim=32, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, labels = torch.randn(10, 1, 8, 8), torch.arange(10) % 5
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_vit_small_has_the_parameters_of_the_literature() -> None:
    """22,050,664 with a class token and its position (Touvron et al. 2021, as timm counts), which are 2·384."""
    with torch.device("meta"):
        model = vit(num_classes=1000, image_size=224, patch_size=16, dim=384, depth=12, heads=6)
    assert sum(p.numel() for p in model.parameters()) == 22_050_664 - 2 * 384


def test_patches_are_read_row_by_row() -> None:
    model = vit("none", in_channels=1, image_size=(4, 6), patch_size=2, dim=4, depth=1)
    with torch.no_grad():
        model.patches.weight.fill_(0.25)
        model.patches.bias.zero_()
    seen: list[Tensor] = []
    model.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.arange(6.0).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    model(image[None, None])
    torch.testing.assert_close((seen[0] - model.positions)[0, :, 0], torch.arange(6.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 9, "patch_size": 2}, "image_size must be whole patches of 2×2, got 9×9"),
        ({"dim": 30, "heads": 4}, "dim must give each of 4 heads whole channels, got 30"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"norm": "lyer"}, "unknown norm 'lyer'; did you mean 'layer'"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**options)


def test_wrong_images_and_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of \(32, 32\) pixels, got \(8, 8\)"):
        vit()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match="expected a floating-point input"):
        vit()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="heads an even number of whole channels, got 12"):
        llama_vit(dim=12, heads=4)
