"""Pairs -> augmented batches on all hosts, prefetched; grain does the threads and the processes.

What position `k` of the stream holds is a pure function of the settings, the seed and k: which pair
it is, how it is cut, turned and lit, which pixels are matched. Step s has the positions s B ... s B
+ B - 1, of which process p of P takes the p-th part. So a stream that starts at step s is the rest
of the unbroken one, and the number of processes, threads and workers changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lunar_distill_jax.data import appearance, augment, batches, crops
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair

CHOICES = {"crop": ("homography", "centre"), "turn": ("none", "quarters", "trajectory", "upright")}
SIZE_STREAM, SAMPLE_STREAM = 13, 17
ENDLESS = 2**48  # steps; grain wants a length


@dataclasses.dataclass(frozen=True)
class Settings:
    """What happens to a pair on its way into a batch, in this order.

    seed, batch:  of all processes together
    sizes:        (height, width) of the frames; each step draws one of them
    far:          depths beyond this percentile of a frame are masked; 100: none (StereoLunar's own
                  loader masks beyond 98, which is its deepest 2 % of ground)
    monocular:    probability that both views are view 1
    swap:         probability that the views trade places
    crop:         "homography": MASt3R's `aug_crop`; "centre": the middle
    turn:         "none"; "quarters": each view by 0 to 3 quarters, both the same parity unless
                  square; "trajectory": swap, mirror and turn as `augment.turn_and_swap` allows;
                  "upright": that, and then view 2 by the quarters that leave the least roll
    lunar:        StereoLunar's bilateral filter, dimming and contrast
    jitter:       strength of brightness, contrast and saturation; hue is a fifth of it. 0: none
    sensor:       strength of blur, noise and a change of gamma, each view's own. 0: none
    matches:      rows of `correspondences.draw`; 0: none
    negatives:    share of them without a partner
    labels:       False: images only, for distillation without ground truth
    """

    seed: int = 0
    batch: int = 8
    sizes: tuple[tuple[int, int], ...] = ((512, 512),)
    far: float = 100.0
    monocular: float = 0.0
    swap: float = 0.0
    crop: str = "homography"
    turn: str = "none"
    lunar: bool = False
    jitter: float = 0.5
    sensor: float = 0.0
    matches: int = 8192
    negatives: float = 0.5
    labels: bool = True

    def __post_init__(self):
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise InputError(f"pipeline.{key} is {value!r}: choose from {', '.join(known)}.")
        ranges = {
            "seed": (0, None),
            "batch": (1, None),
            "far": (0, 100),
            "monocular": (0, 1),
            "swap": (0, 1),
            "jitter": (0, 1),
            "sensor": (0, 1),
            "matches": (0, None),
            "negatives": (0, 1),
        }
        for key, (least, most) in ranges.items():
            value = getattr(self, key)
            if not (least <= value and (most is None or value <= most)):
                limit = f"{least} or more" if most is None else f"{least} to {most}"
                raise InputError(f"pipeline.{key} is {value}: give {limit}.")
        if not self.sizes or any(len(s) != 2 or min(s) < 16 for s in self.sizes):
            raise InputError(
                f"pipeline.sizes is {self.sizes}: give (height, width) pairs of 16 or more."
            )
        if self.turn in ("trajectory", "upright") and any(h != w for h, w in self.sizes):
            raise InputError(
                f"pipeline.turn is {self.turn!r} but pipeline.sizes has {self.sizes}: give squares."
            )


def frame_size(settings: Settings, step: int) -> tuple[int, int]:
    """(height, width) of the frames of a step."""
    rng = np.random.default_rng([settings.seed, SIZE_STREAM, step])
    height, width = settings.sizes[rng.integers(len(settings.sizes))]
    return height, width


def augmented_pair(
    settings: Settings, pair: StereoPair, size: tuple[int, int], rng: np.random.Generator
) -> StereoPair:
    """One pair after all that `settings` asks for."""
    if settings.far < 100:
        pair = mask_far(pair, settings.far)
    if rng.uniform() < settings.monocular:
        first = crops.views_of(pair)[0]
        pair = crops.with_views(pair, [first, first])
    if rng.uniform() < settings.swap:
        pair = augment.swap_views(pair)
    quarters = rng.integers(4, size=2)
    if size[0] != size[1]:
        quarters[1] = (quarters[0] + 2 * (quarters[1] % 2)) % 4
    turned = settings.turn == "quarters"
    cut = (size[1], size[0]) if turned and quarters[0] % 2 else size
    if settings.crop == "homography":
        pair = crops.homography_crop(pair, cut, rng)
    else:
        pair = crops.centre_crop(pair, cut)
    if turned:
        pair = augment.rotate_views(pair, (int(quarters[0]), int(quarters[1])))
    if settings.turn in ("trajectory", "upright"):
        pair = augment.turn_and_swap(pair, rng)
    if settings.turn == "upright":
        pair = augment.upright(pair)
    images = list(pair.image)
    if settings.lunar:
        images = [appearance.lunar(image, rng) for image in images]
    if settings.jitter:
        strength = settings.jitter
        images = [
            appearance.color_jitter(image, rng, strength=strength, hue=strength / 5)
            for image in images
        ]
    if settings.sensor:
        images = [appearance.sensor(image, rng, settings.sensor) for image in images]
    return dataclasses.replace(pair, image=np.stack(images))


def mask_far(pair: StereoPair, percentile: float) -> StereoPair:
    """Pixels beyond a percentile of their frame's valid depths are no longer valid."""
    valid = pair.valid.copy()
    for view in np.flatnonzero(valid.any((1, 2))):
        depth = pair.depth_m[view]
        valid[view] &= depth <= np.percentile(depth[valid[view]], percentile)
    return dataclasses.replace(pair, valid=valid, depth_m=np.where(valid, pair.depth_m, 0))


def pair_at(settings: Settings, pairs: Sequence[StereoPair], position: int):
    """-> the augmented pair at a position of the stream, and the generator for its matches"""
    step, row = divmod(position, settings.batch)
    index = batches.sample_indices(settings.seed, position, 1, len(pairs))[0]
    rng = np.random.default_rng([settings.seed, SAMPLE_STREAM, step, row])
    pair = augmented_pair(settings, pairs[int(index)], frame_size(settings, step), rng)
    return pair, rng


def sample_at(
    settings: Settings, pairs: Sequence[StereoPair], position: int
) -> dict[str, np.ndarray]:
    """The arrays of one position: those of `batches.make_batch` without the leading B."""
    pair, rng = pair_at(settings, pairs, position)
    if not settings.labels:
        return {f"image{v + 1}": batches.network_image(pair.image[v]) for v in (0, 1)}
    return batches.make_sample(pair, rng, matching=settings.matches, negatives=settings.negatives)


def batch_at(
    settings: Settings,
    pairs: Sequence[StereoPair],
    step: int,
    *,
    process: int = 0,
    processes: int = 1,
) -> dict[str, np.ndarray]:
    """The rows of process `process` of the batch of a step; with one process, all of it."""
    part = settings.batch // processes
    first = step * settings.batch + process * part
    return batches.stack([sample_at(settings, pairs, first + row) for row in range(part)])


def stream(
    settings: Settings,
    pairs: Sequence[StereoPair],
    *,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every batch from step `start` on, endless.

    Args:
      pairs: any random-access sequence (`source.open_folder`, `SyntheticPairs`, a list)
      process, processes: `jax.process_index()` and `jax.process_count()`
      threads: that make batches at the same time
      workers: processes of their own that do so, each with `threads`; 0: none
      ahead: batches made in advance

    Returns:
      a grain iterator: `get_state` and `set_state` go with the model's checkpoint.

    Raises:
      InputError: there are no pairs, or the batch does not divide among the processes.
    """
    import grain  # here: seconds to import

    if not len(pairs):
        raise InputError("There is no pair to train on: give a folder that holds pairs.")
    if settings.batch % processes:
        raise InputError(
            f"pipeline.batch is {settings.batch}, which {processes} processes cannot share: give a "
            f"multiple of {processes}."
        )
    made = functools.partial(batch_at, settings, pairs, process=process, processes=processes)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    # An element is a whole batch: workers take turns by elements, and no batch may be torn.
    data = grain.MapDataset.range(start, ENDLESS).map(made).to_iter_dataset(options)
    if workers:
        _parse_absl_flags()
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(data)


def _parse_absl_flags() -> None:
    """grain's workers hand on absl's flags, which only programs run by absl have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def to_global(batch: dict[str, np.ndarray], sharding):
    """Each process's rows -> arrays of the whole batch, laid out by a `jax.sharding.Sharding`."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
