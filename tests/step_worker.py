"""Runs of the training step on eight simulated devices, for tests/test_step.py: prints JSON.

    step_worker.py fast|slow
    step_worker.py process RANK|alone PORT OUT

A process of its own, because devices are simulated for a whole process (`environment` there).
"""

import json
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax.losses.settings import LossSettings, loss_settings
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.fresh import fresh_params
from lunar_distill_jax.train import forward, sharding
from lunar_distill_jax.train.optim import OptimSettings
from lunar_distill_jax.train.state import Student, Trial, init_state
from lunar_distill_jax.train.step import make_train_step

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_default_matmul_precision", "highest")

PAIRS, SIZE = 8, 32
# A large eps: Adam's first step is the sign of the gradient, and a sign turns rounding into steps.
OPTIM = OptimSettings(steps=20, eps=1e-2, ema=0.9)
ON = ("points", "features")
DEFAULT = LossSettings()
ALL_TERMS = (
    *("points", "confidence", "gradient", "relief", "sobel"),
    *("features", "relational", "matching", "descriptors"),
)
SHAPES = [(t, d, 8 // (t * d)) for t in (1, 2, 4, 8) for d in (1, 2, 4, 8) if t * d <= 8]


def config(name: str, width: int, depth: int, **head) -> StereoConfig:
    head = dict(shared=True, layers=(8, 8, 8, 8), last=4, desc=4, desc_ratio=1.0) | head
    head["width"] = 32 if sys.argv[1] == "slow" else 8  # mesh.model up to 8 splits a quarter of it
    return StereoConfig(
        name=name,
        encoder=EncoderConfig(width=width, depth=1, heads=2, mlp_ratio=2.0),
        decoder=DecoderConfig(width=16, depth=depth, heads=2, mlp_ratio=2.0),
        head=HeadConfig(**head),
    )


TEACHER = config("teacher", 24, 1, kind="catconv")
STUDENTS = {
    "a": config("a", 16, 1, kind="catconv"),
    "b": config("b", 24, 1, kind="catconv", last=8),
    "c": config("c", 16, 2),
    "d": config("d", 16, 1, shared=False),
}


def batch():
    rng = np.random.default_rng(0)
    shape = (PAIRS, SIZE, SIZE)
    out = {k: rng.normal(size=(*shape, 3)).astype(np.float32) for k in ("image1", "image2")}
    # Some samples have few valid pixels: a mean of means is not the mean.
    share = np.linspace(0.05, 1, PAIRS)[:, None, None]
    return out | {k: rng.uniform(size=shape) < share for k in ("valid1", "valid2")}


def trials(name: str, count: int):
    """Trials that differ in everything that a trial may differ in."""
    return [
        Trial(
            fresh_params(STUDENTS[name], seed),
            {"points": 1.0 + 0.1 * seed, "features": 0.5 * (seed % 3)},
            lr=1e-3 * (1 + seed),
            seed=seed,
        )
        for seed in range(count)
    ]


def program(chosen, *, mesh=None, accumulate=1, settings=DEFAULT, on=ON, matches=0):
    """-> (step, state, teacher's variables) for {name: trials}"""
    variables = {"params": fresh_params(TEACHER, 77)}
    target_fn = forward.live_teacher(
        TEACHER, on, settings, symmetric=True, matches=matches, compute=Compute()
    )
    compiled = {name: Student(STUDENTS[name], OPTIM, on) for name in chosen}
    width = TEACHER.encoder.width
    state = init_state({n: (compiled[n], t) for n, t in chosen.items()}, width)
    step = make_train_step(
        compiled,
        target_fn,
        settings,
        symmetric=True,
        accumulate=accumulate,
        mesh=mesh,
        state=state,
        teacher=variables,
    )
    if mesh is not None:
        state = sharding.put(state, sharding.state_sharding(state, mesh))
        variables = sharding.put(variables, sharding.params_sharding(variables, mesh))
    return step, state, variables


def run(step, state, variables, batches):
    """-> (state, metrics of each step), as numpy"""
    seen = []
    for each in batches:
        state, metrics = step(state, variables, each)
        seen.append(jax.device_get(metrics))
    return jax.device_get(state), seen


def difference(one, two) -> float:
    """Largest |one - two| over all leaves, relative where a leaf has numbers above 1."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        worst = max(worst, float(np.abs(a - b).max() / max(1.0, np.abs(b).max())))
    return worst


def trial_of(tree, index):
    return jax.tree.map(lambda x: x[index : index + 1], tree)


def compare(ours, reference) -> dict[str, float]:
    """Differences of two (state, metrics) of a student."""
    (state, seen), (other, expected) = ours, reference
    return {
        "loss": difference(seen, expected),
        "params": difference(state.params, other.params),
        "moments": difference(state.opt, other.opt),
        "ema": difference(state.ema, other.ema),
    }


def of(result, name):
    """(state, metrics) of one student out of a run."""
    state, seen = result
    return state.students[name], [metrics[name] for metrics in seen]


def meshes(shapes, eight, batches) -> dict[str, dict[str, float]]:
    out = {}
    for shape in shapes:
        made = program({"a": trials("a", 8)}, mesh=sharding.make_mesh(*shape))
        out["x".join(map(str, shape))] = compare(of(run(*made, batches), "a"), eight)
    return out


def singles(eight, batches) -> dict[str, dict[str, float]]:
    """Eight runs of one trial each against the eight in one program."""
    out, step = {}, None
    for index, trial in enumerate(trials("a", 8)):
        made = program({"a": [trial]})
        step = step or made[0]  # compiled once: the trials differ in numbers only
        single = of(run(step, *made[1:], batches), "a")
        out[str(index)] = compare(single, trial_of(eight, index))
    return out


def nan_isolation(made, eight, batches) -> dict[str, object]:
    """Trial 3 has a weight of nan: nothing of the others may change by a bit."""
    step, state, variables = made
    broken = state.students["a"]
    weights = {k: np.array(v) for k, v in broken.weights.items()}
    weights["points"][3] = np.nan
    before = jax.device_get(trial_of(broken.params, 3))
    state = state.replace(students={"a": broken.replace(weights=weights)})
    ours, seen = of(run(step, state, variables, batches), "a")
    others = np.array([0, 1, 2, 4, 5, 6, 7])

    def equal(one, two, rows=others):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
        return all(np.array_equal(np.asarray(a)[rows], np.asarray(b)[rows]) for a, b in pairs)

    kinds = ("params", "opt", "ema", "skipped")
    states = ([getattr(s, k) for k in kinds] for s in (ours, eight[0]))
    return {
        "others": equal(*states) and equal(seen, eight[1]),
        "kept": equal(trial_of(ours.params, 3), before, slice(None)),
        "loss": str(seen[-1]["loss"][3]),
        "skipped": ours.skipped.tolist(),
    }


def together(names, batches) -> dict[str, dict[str, float]]:
    """Students in one program against each alone."""
    both = run(*program({name: trials(name, 1) for name in names}), batches)
    alone = {name: run(*program({name: trials(name, 1)}), batches) for name in names}
    return {name: compare(of(both, name), of(alone[name], name)) for name in names}


def accumulation(on, batches) -> dict[str, float]:
    """Four micro-batches against the whole batch, with what is drawn at random drawn alike."""
    settings = loss_settings(
        {
            "margin": 0.3,
            "least_sure": 0.2,
            "relational_tokens": 3,
            "matching": {"source": "teacher", "confidence": "mean", "negatives": 0.7},
        }
    )
    first = trials("a", 1)[0]
    chosen = {"a": [Trial(first.params, dict.fromkeys(on, 0.5), first.lr)]}
    options = {"settings": settings, "on": on, "matches": 12}
    whole, parts = (
        of(run(*program(chosen, accumulate=n, **options), batches), "a") for n in (1, 4)
    )
    return compare(parts, whole)


def one_of_two(rank: str, port: str, out: str, batches) -> None:
    """A run over 2 x 2 x 2 devices of two processes, or of this one where the rank is "alone"."""
    if rank != "alone":
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    mesh = sharding.make_mesh(2, 2, 2)
    step, state, variables = program({"a": trials("a", 8)}, mesh=mesh)
    by_batch = NamedSharding(mesh, P("data"))
    for each in batches:
        each = sharding.put(each, dict.fromkeys(each, by_batch))
        state, metrics = step(state, variables, each)
    kept = (state.students["a"].params, metrics["a"])
    kept = multihost_utils.process_allgather(kept, tiled=True)
    if rank in ("0", "alone"):
        np.savez(out, *(np.asarray(x) for x in jax.tree.leaves(kept)))


def main() -> None:
    batches = [batch()] * 2
    if sys.argv[1] == "process":
        one_of_two(*sys.argv[2:], batches)
        return
    step, state, variables = program({"a": trials("a", 8)})
    eight = of(run(step, state, variables, batches), "a")
    again = program({"a": trials("a", 8)})[1]  # the first state was donated
    result = {"nan": nan_isolation((step, again, variables), eight, batches)}
    if sys.argv[1] == "fast":
        result["meshes"] = meshes([(2, 2, 2)], eight, batches)
        result["quantile"] = accumulation(("matching",), batches)
    else:
        result["meshes"] = meshes(SHAPES, eight, batches)
        result["singles"] = singles(eight, batches)
        result["together"] = together(tuple(STUDENTS), batches)
        result["accumulation"] = accumulation(ALL_TERMS, batches)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
