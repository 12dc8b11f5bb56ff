"""One training step of the paper's s3 in plain PyTorch, from the descriptions: a peer to time.

    python torch_step.py FOLDER       # as bench_step.py prepares it

Needs torch, numpy and safetensors, and nothing of ours. FOLDER holds teacher/model.safetensors,
student/model.safetensors and inputs.npz: image1, image2 [B, H, W, 3] in [-1, 1], pixels1, pixels2
[B, M, 2] (x, y), pixels_valid [B, M], projector [D_s, D_t]. Each line on standard input is one
step; the line that comes back: its seconds, the seconds of all cores, the process's peak memory as
getrusage has it, the loss and the gradient's norm.
"""

import pathlib
import resource
import sys
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from torch_mast3r import (
    Weights,
    decode,
    encoder_block,
    merge_heads,
    mlp,
    rotary_table,
    split_heads,
)

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def in_turns(a, b):
    """The pairs (a, b) and (b, a), row by row."""
    return torch.stack([a, b], 1).flatten(0, 1)


def both_ways(w: Weights, tokens, h: int, width: int, table):
    """Encoder tokens of [view 1; view 2] -> what `decode` gives of [2 B, ...], tokens."""
    one, two = tokens.chunk(2)
    one, two = in_turns(one, two), in_turns(two, one)
    return decode(w, one, two, h, width, table), (one, two)


def teacher(w: Weights, images):
    """[2 B, 3, H, W], view 1 first"""
    h, width = images.shape[2] // 16, images.shape[3] // 16
    table = rotary_table(h, width)
    x = w.conv("patch_embed.proj", images, stride=16).flatten(2).transpose(1, 2)
    for i in range(w.depth("enc_blocks")):
        x = encoder_block(w.below(f"enc_blocks.{i}"), x, table)
    return both_ways(w, w.norm("enc_norm", x), h, width, table)


def vit_block(w: Weights, x):
    """A block of DINOv2: no rotation, both branches scaled by channel."""
    q, k, v = (
        split_heads(t) for t in w.below("attn").linear("qkv", w.norm("norm1", x)).chunk(3, -1)
    )
    y = merge_heads(F.scaled_dot_product_attention(q, k, v))
    x = x + w("ls1.gamma") * w.below("attn").linear("proj", y)
    return x + w("ls2.gamma") * mlp(w.below("mlp"), w.norm("norm2", x))


def student(w: Weights, images):
    """s3: DINOv2 ViT-S/14 at 14 pixels a token, an adapter, four decoder blocks, MASt3R's heads."""
    h, width = images.shape[2] // 16, images.shape[3] // 16
    x = (images * 0.5 + 0.5 - MEAN) / STD
    x = F.interpolate(x, (14 * h, 14 * width), mode="bilinear", align_corners=False)
    vit = w.below("tiny_vit.vit")
    x = vit.conv("patch_embed.proj", x, stride=14).flatten(2).transpose(1, 2)
    table = vit("pos_embed")
    grid = round((table.shape[1] - 1) ** 0.5)
    places = table[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    scale = ((h + 0.1) / grid, (width + 0.1) / grid)
    places = F.interpolate(places, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    first = (vit("cls_token") + table[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x + places], 1)
    for i in range(vit.depth("blocks")):
        x = vit_block(vit.below(f"blocks.{i}"), x)
    x = vit.norm("norm", x)[:, 1:].transpose(1, 2).unflatten(2, (h, width))
    x = F.group_norm(
        F.conv2d(x, w("tiny_vit.adapter.0.weight")),
        1,
        w("tiny_vit.adapter.1.weight"),
        w("tiny_vit.adapter.1.bias"),
    )
    # The paper's code gives the decoder (x, y), where MASt3R has (y, x).
    cos, sin = (torch.cat(t.chunk(2, -1)[::-1], -1) for t in rotary_table(h, width))
    return both_ways(w, x.flatten(2).transpose(1, 2), h, width, (cos, sin))


def normalised(one, two):
    """Point maps [B, H, W, 3] of both views over the mean distance of all their points."""
    unit = torch.cat([one.flatten(1, 2), two.flatten(1, 2)], 1).norm(dim=-1).mean(1)
    return tuple(x / unit.view(-1, 1, 1, 1) for x in (one, two))


def sobel(error):
    """Mean |d/dx| + |d/dy| of [B, H, W]"""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    x = F.pad(error[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(x, torch.stack([kernel, kernel.T])[:, None]).abs().sum(1).mean()


def matching(one, two, pixels, valid):
    """InfoNCE of 24 channels at temperature 0.05, each entry weighed by its two confidences."""
    rows = torch.arange(len(valid))[:, None]
    a, b = (x[rows, p[..., 1], p[..., 0]] for x, p in zip((one, two), pixels, strict=True))
    similar = a[..., :-1] @ b[..., :-1].transpose(1, 2) / 0.05
    own = similar.diagonal(dim1=1, dim2=2)
    loss = similar.logsumexp(2) - own + similar.logsumexp(1) - own
    conf = (a[..., -1] + b[..., -1]) / 2
    return (loss * conf - 10 * conf.log())[valid].mean()


def features(own, given, projector):
    """1 - cosine of the tokens whose cosine is below 0.9"""
    cosine = F.cosine_similarity(own @ projector, given, dim=-1)
    kept = 1 - cosine[cosine < 0.9]
    return kept.mean() if len(kept) else cosine.sum() * 0


def loss_of(said, tokens, targets, given_tokens, projector, pixels, valid):
    own = normalised(said[0][..., :3], said[1][..., :3])
    given = normalised(targets[0][..., :3], targets[1][..., :3])
    loss = 0
    for view, (x, g) in enumerate(zip(own, given, strict=True)):
        conf = said[view][..., 3]
        loss = loss + ((x - g).norm(dim=-1) * conf - 0.2 * conf.log()).mean()
        parts = [sobel((x - g)[..., i]) for i in range(3)]
        loss = loss + parts[2] + 0.1 * (parts[0] + parts[1])
        loss = loss + 0.05 * features(tokens[view], given_tokens[view], projector)
    descriptors = (said[0][..., 4:], said[1][..., 4:])
    return loss + 0.075 * matching(*descriptors, pixels, valid)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    given = Weights(load_file(folder / "teacher/model.safetensors"))
    tensors = load_file(folder / "student/model.safetensors")
    inputs = {k: torch.from_numpy(v) for k, v in np.load(folder / "inputs.npz").items()}
    tensors["projector"] = inputs["projector"]
    own = Weights({name: t.requires_grad_() for name, t in tensors.items()})
    kinds = [[t for t in tensors.values() if (t.ndim > 1) == matrix] for matrix in (True, False)]
    groups = [
        {"params": kind, "weight_decay": decay}
        for kind, decay in zip(kinds, (0.05, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    images = torch.cat([inputs["image1"], inputs["image2"]]).permute(0, 3, 1, 2).contiguous()
    one, two = inputs["pixels1"].long(), inputs["pixels2"].long()
    pixels = in_turns(one, two), in_turns(two, one)
    valid = in_turns(inputs["pixels_valid"], inputs["pixels_valid"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            targets, given_tokens = teacher(given, images)
        said, tokens = student(own, images)
        loss = loss_of(said, tokens, targets, given_tokens, tensors["projector"], pixels, valid)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        optimizer.step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(seconds, cpu, peak, loss.item(), norm.item(), flush=True)


if __name__ == "__main__":
    main()
