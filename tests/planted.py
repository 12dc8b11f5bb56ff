"""A teacher and a narrower student for tests of initialisation, and teachers made for them."""

import dataclasses

import numpy as np

import lunar_distill_jax as ld
from lunar_distill_jax.init.tree import flatten, unflatten
from lunar_distill_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, StereoConfig

HEAD = HeadConfig(width=8, layers=(8, 8, 8, 8), last=4, desc=2, desc_ratio=0.5, two_confs=False)
TEACHER = StereoConfig(
    name="planted-teacher",
    encoder=EncoderConfig(width=16, depth=1, heads=2, mlp_ratio=1.0),
    decoder=DecoderConfig(width=32, depth=2, heads=4, mlp_ratio=2.0),
    head=HEAD,
)
STUDENT = dataclasses.replace(
    TEACHER, name="planted-student", decoder=DecoderConfig(24, 2, 3, mlp_ratio=2.0)
)
WRITERS = ("attn/proj", "cross_attn/proj", "mlp/fc2")


def random_teacher(seed=0):
    """Fresh parameters of TEACHER, but norms and biases too are random."""
    rng = np.random.default_rng(seed)
    flat = flatten(ld.build(TEACHER, seed).params)
    for name, array in flat.items():
        if name.endswith("/scale"):
            flat[name] = rng.uniform(0.5, 1.5, array.shape)
        elif name.endswith("/bias"):
            flat[name] = rng.normal(0, 0.2, array.shape)
    return flat


def stereo(flat, config=TEACHER):
    return ld.api.Stereo(config, unflatten(flat), {})


def planted_teacher(seed=0):
    """A teacher whose stream lives in STUDENT's width, and whose heads and units beyond the
    student's write nothing."""
    rng = np.random.default_rng([seed, 1])
    flat, d, s = random_teacher(seed), TEACHER.decoder.width, STUDENT.decoder.width
    ones = np.ones((d, 1)) / d**0.5
    basis = np.linalg.qr(np.concatenate([ones, rng.normal(size=(d, s - 1))], 1))[0]
    project = basis @ basis.T  # the mean direction, which no norm sees, and s - 1 others
    for name in list(flat):
        writer = name.startswith("decoder/") and any(f"{w}/" in name for w in (*WRITERS, "embed"))
        if writer:
            flat[name] = flat[name] @ project
    for prefix in {n.split("attn")[0] for n in flat if "/attn/" in n and n.startswith("decoder/")}:
        for kind in ("attn", "cross_attn"):
            kernel = flat[f"{prefix}{kind}/proj/kernel"].copy()
            kernel.reshape(4, 8, d)[rng.integers(4)] = 0
            flat[f"{prefix}{kind}/proj/kernel"] = kernel
        _silence(rng, flat, f"{prefix}mlp/fc2/kernel", 48)
    for view in (1, 2):
        _silence(rng, flat, f"head{view}/local_features/fc2/kernel", 20)
    return flat


def _silence(rng, flat, name, kept):
    kernel = flat[name].copy()
    kernel[rng.permutation(len(kernel))[kept:]] = 0
    flat[name] = kernel


def relabelled(flat, seed=5):
    """The same function under other names: channels of the stream, heads and units permuted."""
    rng = np.random.default_rng(seed)
    d, heads, out = TEACHER.decoder.width, TEACHER.decoder.heads, dict(flat)
    stream = rng.permutation(d)

    def apply(name, axis, order):
        out[name] = np.take(out[name], order, axis)

    for name in flat:
        module, _, kind = name.rpartition("/")
        if not name.startswith("decoder/"):
            continue
        last = module.split("/")[-1]
        if last.startswith("norm") or last in ("proj", "fc2", "embed"):
            apply(name, -1, stream)
        elif kind == "kernel":  # a reader
            apply(name, 0, stream)
    for view in (1, 2):
        for i in range(1, 4):
            apply(f"head{view}/dpt/project{i}/kernel", 2, stream)
        joint = np.concatenate([np.arange(16), 16 + stream])
        apply(f"head{view}/local_features/fc1/kernel", 0, joint)
        units = rng.permutation(flat[f"head{view}/local_features/fc1/bias"].shape[0])
        _permute_units(apply, f"head{view}/local_features", units)
        for i in range(TEACHER.decoder.depth):
            block = f"decoder/view{view}_block{i}"
            _permute_units(
                apply, f"{block}/mlp", rng.permutation(flat[f"{block}/mlp/fc1/bias"].size)
            )
            for kind in ("attn", "cross_attn"):
                order = (rng.permutation(heads)[:, None] * 8 + np.arange(8)).reshape(-1)
                apply(f"{block}/{kind}/proj/kernel", 0, order)
                if kind == "attn":
                    joint = np.concatenate([order + third * d for third in range(3)])
                    apply(f"{block}/attn/qkv/kernel", 1, joint)
                    apply(f"{block}/attn/qkv/bias", 0, joint)
                else:
                    for part in "qkv":
                        apply(f"{block}/cross_attn/{part}/kernel", 1, order)
                        apply(f"{block}/cross_attn/{part}/bias", 0, order)
    return out


def _permute_units(apply, module, order):
    apply(f"{module}/fc1/kernel", 1, order)
    apply(f"{module}/fc1/bias", 0, order)
    apply(f"{module}/fc2/kernel", 0, order)


def images(count, seed=0):
    """Both views of random smooth pictures: two [count, 32, 48, 3] in [-1, 1]."""
    rng = np.random.default_rng([seed, 2])
    y, x = np.mgrid[:32, :48] / 16
    wave = rng.normal(size=(2, count, 3, 4))
    phase = (
        wave[..., 0, None, None] * 3 + wave[..., 1, None, None] * y + wave[..., 2, None, None] * x
    )
    smooth = np.sin(phase) * 0.7 + 0.3 * rng.uniform(-1, 1, (2, count, 3, 32, 48))
    both = smooth.transpose(0, 1, 3, 4, 2).astype(np.float32)
    return both[0], both[1]


def outputs(network, pictures):
    """What a network says of both views: points, and all raw channels (a descriptor of length 0 has
    no direction)."""
    return [
        np.asarray(array, np.float64)
        for view in ld.predict(network, *pictures, features=True)
        for array in (view.pts3d, view.features["raw"])
    ]


def difference(a, b) -> float:
    """The largest of the relative differences of `outputs`."""
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(a, b, strict=True))
