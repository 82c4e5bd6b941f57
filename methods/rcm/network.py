"""The time-conditioned ViT of RCM, with the parameter names and shapes of the official code (arXiv 2501.13094)."""

import math

import torch
from torch import Tensor, nn

SIGMA_DATA = 0.5
HEAD_STD = 2e-5  # official initialisation of the linear head


class Block(nn.Module):
    """Pre-norm attention and MLP (ratio 4, exact GELU); qkv has no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        """(B, tokens, D) to (B, wanted, D): only the first `wanted` tokens are computed, by default all."""
        x = x[:, :wanted] + self.attn(self.norm1(x), wanted)
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class Attention(nn.Module):
    """Multi-head self-attention. The rows of `qkv` are q, k, v; inside each, one head after the other."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, d)
        out = nn.functional.scaled_dot_product_attention(q[:, :, :wanted], k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class ViT(nn.Module):
    """Encoder of noisy images, given their noise level. Tokens: CLS, TIME, patches; all have learned positions.

    Parameters
    ----------
    input_shape : tuple of int
        (C, H, W); H and W are multiples of `patch`.
    patch, width, depth, heads : int
    projector : int, optional
        Width of the hidden layers of the projection head, which only pre-training uses. None: there is none.
    projection : int
        Width of its output.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        projector: int | None = None,
        projection: int = 256,
    ):
        super().__init__()
        channels, height, columns = input_shape
        tokens = 2 + (height // patch) * (columns // patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=1e-6))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        if projector:
            self.projection_head = projection_head(width, projector, projection)

    def forward(self, x: Tensor, t: float, normed: bool = True) -> Tensor:
        """CLS feature (B, D) of images x = clean + t * noise, (B, C, H, W), clean in [-1, 1].

        `t` > 0 is a level of the grid; `normed` is whether the final LayerNorm is applied.
        """
        scaled = x / math.sqrt(t**2 + SIGMA_DATA**2)  # c_in of EDM; there is neither c_skip nor c_out
        patches = self.patch_embed.proj(scaled).flatten(2).transpose(1, 2)
        time = time_token(t, patches.shape[2]).to(patches)
        fixed = torch.cat((self.cls_token, time.view(1, 1, -1)), 1).expand(len(x), -1, -1)
        tokens = torch.cat((fixed, patches), 1) + self.pos_embed
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        tokens = self.blocks[-1](tokens, wanted=1)  # nothing but CLS leaves the last block
        return self.norm(tokens[:, 0]) if normed else tokens[:, 0]


def time_token(t: float, width: int) -> Tensor:
    """Sinusoidal embedding (D,) of u = 250 ln(t + 1e-44): cosines, then sines. No MLP follows."""
    u = 250 * math.log(t + 1e-44)
    half = width // 2
    angles = u * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat((angles.cos(), angles.sin())).float()


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Three linear layers without biases, BatchNorm and ReLU between them."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out, bias=False),
    )


class Classifier(nn.Module):
    """Encoder and linear head: what is tuned for one noise level, with the official names of the tensors.

    `layernorm` is whether the head sees the encoder's final LayerNorm.
    """

    def __init__(self, encoder: ViT, num_classes: int, layernorm: bool = True):
        super().__init__()
        self.base_model, self.layernorm = encoder, layernorm
        self.linear_head = nn.Linear(encoder.norm.normalized_shape[0], num_classes)
        nn.init.trunc_normal_(self.linear_head.weight, std=HEAD_STD, a=-2 * HEAD_STD, b=2 * HEAD_STD)
        nn.init.zeros_(self.linear_head.bias)

    def forward(self, x: Tensor, t: float) -> Tensor:
        return self.linear_head(self.base_model(x, t, self.layernorm))
