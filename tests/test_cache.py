"""The teacher cache: the same targets and the same training, resumed, and only for its own run."""

import dataclasses
import json

import jax
import ml_collections as mlc
import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.cli import main
from lunar_distill_jax.data.batches import make_batch
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses.settings import TERMS, loss_settings
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.train import cache, cached, forward
from lunar_distill_jax.train.cache import Samples, TeacherCache, identity_of, write_cache
from lunar_distill_jax.train.cache_record import pack, unpack
from lunar_distill_jax.train.cache_samples import samples_of
from lunar_distill_jax.train.loop import read_history, train
from lunar_distill_jax.train.plan import check_settings, complete

STUDENT = dataclasses.replace(
    tiny.CONFIG,
    decoder=dataclasses.replace(tiny.CONFIG.decoder, depth=1),
    head=dataclasses.replace(tiny.CONFIG.head, plane=False),
)
TEACHER = dataclasses.replace(
    STUDENT, name="teacher", encoder=dataclasses.replace(tiny.CONFIG.encoder, width=24)
)
ALL = tuple(t for t in TERMS if t != "hooks")
SETTINGS = loss_settings({"matching": {"source": "teacher"}, "least_sure": 0.1})
BATCH = 4


def get_config(**changes):
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch, c.augment, c.matches = 0, 4, BATCH, True, 16
    c.symmetric = True
    c.loss = dict(points=1.0, features=0.3, matching=0.05)
    c.optim = dict(lr=5e-3, warmup=1)
    c.log_every, c.checkpoint_every = 1, 100
    c.update(changes)
    return complete(c)


@pytest.fixture(scope="module")
def pairs():
    return [tiny.plane_pair(i) for i in range(6)]


@pytest.fixture(scope="module")
def teacher():
    return ld.build(TEACHER, 7)


def write(folder, config, teacher, pairs, **options):
    plan = check_settings(config, has_teacher=True)
    samples = samples_of(config, pairs, config.steps)
    fields = cached.kept_fields(plan.on, plan.settings)
    return write_cache(
        folder,
        teacher,
        samples,
        fields,
        compute=plan.teacher_compute,
        symmetric=config.symmetric,
        **options,
    )


@pytest.mark.parametrize(
    ("exact", "bound"),
    # Relative to the largest number of an array. Seen: 4e-7 (another program), 5e-4 (float16).
    [(True, 2e-6), (False, 1e-3)],
)
def test_targets_are_the_live_teacher_s(pairs, teacher, tmp_path, exact, bound):
    batch = make_batch(pairs[:BATCH], [None] * BATCH, augmented=False, matching=0)
    samples = Samples("pair", BATCH, BATCH, lambda n: batch, {})
    fields = cached.kept_fields(ALL, SETTINGS)
    options = {"compute": Compute(), "symmetric": True}
    write_cache(tmp_path / "c", teacher, samples, fields, exact=exact, **options)
    identity = identity_of(teacher, samples, **options)
    held = TeacherCache(tmp_path / "c", identity, fields).with_targets(batch, range(BATCH))
    said = {"symmetric": True, "matches": 12}
    live = forward.live_teacher(TEACHER, ALL, SETTINGS, compute=Compute(), **said)
    own = cached.cached_teacher(TEACHER, ALL, SETTINGS, **said)
    few = cached.descriptor_variables(TEACHER, teacher.params, ALL, SETTINGS)
    key = jax.random.key(3)
    ours, reference = (
        jax.device_get(jax.jit(f)(*a, key))
        for f, a in ((own, (few, held)), (live, (teacher.variables, batch)))
    )
    for name in ("points", "conf", "tokens", "desc") if exact else ("points", "conf", "tokens"):
        for a, b in zip(getattr(ours, name), getattr(reference, name), strict=True):
            assert a.shape == b.shape
            assert np.max(np.abs(a - b)) <= bound * np.max(np.abs(b)), name
    for name in ("valid", "pixels"):
        for a, b in zip(getattr(ours, name), getattr(reference, name), strict=True):
            assert np.mean(a == b) > (0.999 if exact else 0.97), name


@pytest.mark.slow  # four programs are compiled
@pytest.mark.parametrize(
    ("augment", "exact", "bounds"),
    [
        # Of the losses of steps 1 to 4. Adam divides a small gradient by its own size, so that 16
        # bits' rounding, and nothing else, grows tenfold a step at this rate of 5e-3.
        (True, False, (3e-5, 3e-5, 1e-3, 2e-3)),  # seen 2e-6, 1e-5, 2e-5, 7e-5
        (False, False, (3e-5, 3e-5, 1e-3, 2e-3)),  # seen 8e-6, 1e-5, 2e-4, 6e-4
        (False, True, (2e-6, 2e-6, 2e-6, 2e-6)),  # seen 0, 0, 1e-7, 2e-7
    ],
)
def test_training_from_the_cache_is_training_with_the_teacher(
    pairs, teacher, tmp_path, augment, exact, bounds
):
    config = get_config(augment=augment)
    student = ld.build(STUDENT, 0)
    about = write(tmp_path / "cache", config, teacher, pairs, exact=exact)
    assert about["count"] == (16 if augment else 6)
    train(config, tmp_path / "live", pairs, teacher=teacher, student=student)
    offline = get_config(augment=augment, cache=str(tmp_path / "cache"))
    train(offline, tmp_path / "cached", pairs, teacher=teacher, student=student)
    live, held = (read_history(tmp_path / k) for k in ("live", "cached"))
    assert len(live) == len(held) == 4
    terms = ("loss", "points", "features", "matching")
    errors = [[abs(a[t] / b[t] - 1) for t in terms] for a, b in zip(live, held, strict=True)]
    assert np.all(np.max(errors, 1) < bounds), errors


def test_a_shorter_cache_starts_over(pairs, teacher, tmp_path):
    config = get_config(steps=2)
    write(tmp_path, config, teacher, pairs)
    samples = samples_of(config, pairs, 2)
    held = TeacherCache(tmp_path, identity_of(teacher, samples, Compute(), True), {"points"})
    assert [held.step_of(s) for s in range(5)] == [0, 1, 0, 1, 0]


def test_a_stopped_cache_goes_on_where_it_stopped(pairs, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 4)
    config = get_config(symmetric=False, steps=3)
    plan = check_settings(config, has_teacher=True)
    fields = cached.kept_fields(plan.on, plan.settings)
    whole = samples_of(config, pairs, 3)
    asked = []

    def make(n):
        asked.append(n)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole.make(n)

    options = {"compute": Compute(), "symmetric": False}
    stopped = dataclasses.replace(whole, make=make)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "a", teacher, stopped, fields, **options)
    identity = identity_of(teacher, whole, **options)
    with pytest.raises(InputError, match=r"not complete.*`lunar-distill cache` again"):
        TeacherCache(tmp_path / "a", identity, fields)
    assert [p.name for p in sorted(tmp_path.glob("a/*"))] == [
        "cache.json",
        "targets-00000.array_record",
    ]
    write_cache(tmp_path / "a", teacher, stopped, fields, **options)
    assert asked == [0, 1, 1, 2]  # the first file was kept
    write_cache(tmp_path / "b", teacher, whole, fields, **options)
    for name in sorted(p.name for p in (tmp_path / "b").iterdir()):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture(scope="module")
def written(pairs, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "cache"
    write(folder, get_config(), teacher, pairs)
    return folder


def refused(written, pairs, teacher, workdir, **changes):
    config = get_config(cache=str(written), **changes)
    with pytest.raises(InputError) as error:
        train(config, workdir, pairs, teacher=teacher, student=ld.build(STUDENT, 0))
    assert not (workdir / "metrics.jsonl").exists()
    return str(error.value)


def test_caches_of_other_runs_are_refused(written, pairs, teacher, tmp_path):
    other = teacher.replace(params=jax.tree.map(np.copy, teacher.params))
    other.params["decoder"]["norm"]["bias"][0] += 1e-6
    said = refused(written, pairs, other, tmp_path)
    assert "another teacher" in said
    assert cache.teacher_digest(teacher) in said and cache.teacher_digest(other) in said
    said = refused(written, pairs, teacher, tmp_path, seed=1)
    assert "seed 0, batch 4, but this run has augment, seed 1, batch 4" in said
    assert "another symmetric: True" in refused(written, pairs, teacher, tmp_path, symmetric=False)
    assert "another training pairs" in refused(written, pairs[:5], teacher, tmp_path)
    said = refused(written, pairs, teacher, tmp_path, loss=dict(points=1.0, descriptors=1.0))
    assert "the losses also need last" in said
    assert "There is no teacher cache" in refused(tmp_path / "none", pairs, teacher, tmp_path / "w")


def test_changed_images_are_noticed(written, pairs, teacher, tmp_path):
    darker = [dataclasses.replace(p, image=p.image // 2) for p in pairs]
    assert "written for other images" in refused(written, darker, teacher, tmp_path)


def test_a_folder_with_another_cache_is_kept(written, pairs, teacher, tmp_path):
    before = (written / "cache.json").read_text()
    with pytest.raises(InputError, match="was begun with exact False, and now it is True"):
        write(written, get_config(), teacher, pairs, exact=True)
    with pytest.raises(InputError, match="of another order and augmentation"):
        write(written, get_config(seed=2), teacher, pairs)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="files that are no cache"):
        write(tmp_path, get_config(), teacher, pairs)
    assert (written / "cache.json").read_text() == before


def test_records_keep_numbers_to_their_sixteen_bits():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :40] / 40
    points = np.stack([x - 0.5, y - 0.3, 3 + 0.1 * np.sin(9 * x)], -1)[None, None]
    points = points.astype(np.float32) + rng.normal(size=points.shape).astype(np.float32) * 1e-3
    conf = 1 + np.exp(rng.normal(size=(1, 1, 24, 40, 1))).astype(np.float32)
    tokens = rng.normal(size=(2, 6, 8)).astype(np.float32)
    arrays = {"points": points, "conf": conf, "tokens": tokens}
    kept, images = unpack(pack(arrays, exact=False, images=5))
    assert images == 5
    # Half a step of the range (of 1 in x, y), grown by leaving the warped lengths again.
    assert np.max(np.abs(kept["points"] - points)) < 4e-5
    assert np.max(np.abs(kept["conf"] / conf - 1)) < 1e-4
    np.testing.assert_array_equal(kept["tokens"], tokens.astype(np.float16))
    same, _ = unpack(pack(arrays, exact=True))
    assert all(np.array_equal(same[k], arrays[k]) for k in arrays)
    points[0, 0, 3, 4] = np.inf  # fixed point has no infinity
    np.testing.assert_array_equal(unpack(pack(arrays, exact=False))[0]["points"], points)


def test_the_verb_writes_a_cache_for_one_run_only(teacher, tmp_path, capsys):
    ld.save(teacher, tmp_path / "teacher.safetensors")
    config = tmp_path / "config.py"
    config.write_text(
        "from lunar_distill_jax.demo import get_config as demo\n"
        "def get_config(mode=''):\n"
        "    c = demo('tiny')\n"
        "    c.steps, c.batch, c.data.geometries, c.cache = 2, 2, 2, ''\n"
        "    c.encoder, c.init, c.calibration, c.data.kept = '', 'inherit', 0, ''\n"
        "    c.pipeline.on, c.augment, c.loss.matching = False, True, 0.0\n"
        f"    c.teacher, c.data.size = {str(tmp_path / 'teacher.safetensors')!r}, 32\n"
        "    return c\n"
    )
    out = tmp_path / "out"
    assert main(["cache", "--config", str(config), "--out", str(out)]) == 0
    assert "Wrote 4 samples" in capsys.readouterr().out
    about = json.loads((out / "cache.json").read_text())
    assert about["complete"] and about["bytes_per_pair"] > 1000
    command = ["train", "--config", str(config), "--workdir", str(tmp_path / "w")]
    assert main([*command, f"--config.cache={out}", "--config.seed=3"]) == 2
    assert "of another order and augmentation" in capsys.readouterr().err
