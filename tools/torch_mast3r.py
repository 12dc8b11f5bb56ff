"""MASt3R's forward pass in plain PyTorch, from the description of the architecture: a peer to time.

    python torch_mast3r.py FOLDER       # FOLDER holds model.safetensors and images.npy

Needs torch, numpy and safetensors, and nothing of ours. `images.npy` is float32 [2, B, H, W, 3] in
[-1, 1]. Each line on standard input is one forward pass; its seconds, the seconds of all cores, and
the process's peak memory as getrusage has it are the line that comes back. The first pass writes
outputs.npy: [2, B, H, W, 4 + K], the points, their confidence, the descriptors and theirs.
"""

import pathlib
import resource
import sys
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file

HEAD_SIZE = 64


class Weights:
    """{name: tensor} below a prefix."""

    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def __call__(self, name: str) -> torch.Tensor:
        return self.tensors[self.prefix + name]

    def below(self, name: str) -> "Weights":
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def depth(self, name: str) -> int:
        """How many numbered blocks there are."""
        start = f"{self.prefix}{name}."
        return 1 + max(int(n[len(start) :].split(".")[0]) for n in self.tensors if start in n)

    def linear(self, name: str, x):
        return F.linear(x, self(f"{name}.weight"), self(f"{name}.bias"))

    def norm(self, name: str, x):
        return F.layer_norm(x, x.shape[-1:], self(f"{name}.weight"), self(f"{name}.bias"), 1e-6)

    def conv(self, name: str, x, bias: bool = True, **options):
        return F.conv2d(
            x, self(f"{name}.weight"), self(f"{name}.bias") if bias else None, **options
        )


def rotary_table(h: int, w: int):
    """cos, sin [h * w, HEAD_SIZE] of row-major (row, column): half of a head turns with each."""
    frequency = 100.0 ** (-torch.arange(HEAD_SIZE // 4) / (HEAD_SIZE // 4))
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angles = [p.reshape(-1, 1) * frequency for p in (rows, columns)]
    angle = torch.cat([angles[0], angles[0], angles[1], angles[1]], -1)
    return angle.cos(), angle.sin()


def rotate(x, table):
    cos, sin = table
    y1, y2, x1, x2 = x.chunk(4, -1)
    return x * cos + torch.cat([-y2, y1, -x2, x1], -1) * sin


def split_heads(x):
    b, n, d = x.shape
    return x.view(b, n, d // HEAD_SIZE, HEAD_SIZE).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


def self_attention(w: Weights, x, table):
    q, k, v = (split_heads(t) for t in w.linear("qkv", x).chunk(3, -1))
    x = F.scaled_dot_product_attention(rotate(q, table), rotate(k, table), v)
    return w.linear("proj", merge_heads(x))


def cross_attention(w: Weights, x, memory, table, memory_table):
    q = rotate(split_heads(w.linear("projq", x)), table)
    k = rotate(split_heads(w.linear("projk", memory)), memory_table)
    v = split_heads(w.linear("projv", memory))
    return w.linear("proj", merge_heads(F.scaled_dot_product_attention(q, k, v)))


def mlp(w: Weights, x):
    return w.linear("fc2", F.gelu(w.linear("fc1", x)))


def encoder_block(w: Weights, x, table):
    x = x + self_attention(w.below("attn"), w.norm("norm1", x), table)
    return x + mlp(w.below("mlp"), w.norm("norm2", x))


def decoder_block(w: Weights, x, y, table, other_table):
    x = x + self_attention(w.below("attn"), w.norm("norm1", x), table)
    memory = w.norm("norm_y", y)
    cross = w.below("cross_attn")
    x = x + cross_attention(cross, w.norm("norm2", x), memory, table, other_table)
    return x + mlp(w.below("mlp"), w.norm("norm3", x))


def residual_unit(w: Weights, x):
    return x + w.conv("conv2", w.conv("conv1", x.relu(), padding=1).relu(), padding=1)


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def fusion(w: Weights, x, fine=None):
    if fine is not None:
        x = x + residual_unit(w.below("resConfUnit1"), fine)
    return w.conv("out_conv", double(residual_unit(w.below("resConfUnit2"), x)))


def dense_head(w: Weights, tokens, h: int, width: int):
    """Four token maps [B, N, D] -> [B, 4, 16 h, 16 width]"""
    maps = [t.transpose(1, 2).unflatten(2, (h, width)) for t in tokens]
    post = w.below("act_postprocess")
    maps = [post.conv(f"{i}.0", m) for i, m in enumerate(maps)]
    for i, stride in ((0, 4), (1, 2)):
        maps[i] = F.conv_transpose2d(maps[i], post(f"{i}.1.weight"), post(f"{i}.1.bias"), stride)
    maps[3] = post.conv("3.1", maps[3], stride=2, padding=1)
    scratch = w.below("scratch")
    maps = [scratch.conv(f"layer{i}_rn", m, False, padding=1) for i, m in enumerate(maps, 1)]
    x = fusion(scratch.below("refinenet4"), maps[3])[:, :, : maps[2].shape[2], : maps[2].shape[3]]
    for i in (3, 2, 1):
        x = fusion(scratch.below(f"refinenet{i}"), x, maps[i - 1])
    x = w.conv("head.2", double(w.conv("head.0", x, padding=1)), padding=1).relu()
    return w.conv("head.4", x)


def head(w: Weights, layers, h: int, width: int):
    """The decoder's depth + 1 token maps -> [B, H, W, 4 + K]: points, confidence, descriptors."""
    d = len(layers) - 1
    dense = dense_head(
        w.below("dpt"), [layers[i] for i in (0, d * 2 // 4, d * 3 // 4, d)], h, width
    )
    x = mlp(w.below("head_local_features"), torch.cat([layers[0], layers[-1]], -1))
    local = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (h, width)), 16)
    xyz, conf, desc = dense[:, :3], dense[:, 3:], local[:, :-1]
    distance = xyz.norm(dim=1, keepdim=True)
    points = xyz / distance.clip(min=1e-8) * distance.expm1()
    desc = desc / desc.norm(dim=1, keepdim=True)
    out = torch.cat([points, 1 + conf.exp(), desc, local[:, -1:].exp()], 1)
    return out.permute(0, 2, 3, 1)


def forward(w: Weights, image1, image2):
    """Two images [B, 3, H, W] -> [2, B, H, W, 4 + K]"""
    h, width = image1.shape[2] // 16, image1.shape[3] // 16
    table = rotary_table(h, width)
    x = (
        w.conv("patch_embed.proj", torch.cat([image1, image2]), stride=16)
        .flatten(2)
        .transpose(1, 2)
    )
    for i in range(w.depth("enc_blocks")):
        x = encoder_block(w.below(f"enc_blocks.{i}"), x, table)
    return torch.stack(decode(w, *w.norm("enc_norm", x).chunk(2), h, width, table))


def decode(w: Weights, one, two, h: int, width: int, table):
    """Encoder tokens of both views [B, N, D] -> two of [B, H, W, 4 + K]"""
    x1, x2 = (w.linear("decoder_embed", t) for t in (one, two))
    layers1, layers2 = [one], [two]
    for i in range(w.depth("dec_blocks")):
        block1, block2 = w.below(f"dec_blocks.{i}"), w.below(f"dec_blocks2.{i}")
        x1, x2 = (
            decoder_block(block1, x1, x2, table, table),
            decoder_block(block2, x2, x1, table, table),
        )
        layers1.append(x1)
        layers2.append(x2)
    layers1[-1], layers2[-1] = w.norm("dec_norm", x1), w.norm("dec_norm", x2)
    return (
        head(w.below("downstream_head1"), layers1, h, width),
        head(w.below("downstream_head2"), layers2, h, width),
    )


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    weights = Weights(load_file(folder / "model.safetensors"))
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 1, 4, 2, 3).contiguous()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    written = False
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            out = forward(weights, *images)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        if not written:
            np.save(folder / "outputs.npy", out.numpy())
            written = True
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(seconds, cpu, peak, flush=True)


if __name__ == "__main__":
    main()
