"""Finds what is wrong with a data folder before a training run does, and says all of it at once."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from lunar_distill_jax.data import frames, images, source, stereolunar
from lunar_distill_jax.data.frames import Frame, FrameFiles, PairRef
from lunar_distill_jax.data.reprojection import Agreement, agreement
from lunar_distill_jax.errors import InputError

MAX_DISAGREEMENT_PX = 0.5  # real frames: 0.08-0.18 in HALF precision; with a wrong pose 3 and more
MIN_OVERLAP = 0.01
# The depths agree this much better if K is read in the other pixel convention.
CONVENTION_GAIN, CONVENTION_BIAS_PX = 0.25, 0.02


@dataclasses.dataclass(frozen=True)
class Finding:
    """One sentence on what is wrong; `error`: it cannot be used, else it can, but look at it."""

    error: bool
    message: str

    @property
    def kind(self) -> str:
        """The sentence without its names and numbers: equal for findings of one kind."""
        return re.sub(r"\S*(/|_\d)\S*|[-+]?\d[\d.e+-]*", "…", self.message)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `validate` saw.

    frames:       images looked at, those that could not be read too
    trajectories: {trajectory: number of pairs}
    sizes:        {"WxH": number of frames}
    agreements:   {name of a geometry: how well its two depth maps agree}
    findings:     errors first
    """

    root: str
    pairs: int
    geometries: int
    frames: int
    trajectories: dict[str, int]
    sizes: dict[str, int]
    agreements: dict[str, Agreement]
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.error]


def list_pairs(
    root: str | os.PathLike, split: str | None = None
) -> tuple[list[PairRef], list[InputError]]:
    """The pairs that can be listed, and the errors of those that cannot.

    split: name of a split file; None takes all of them, or pairs frames by their numbers

    Raises:
      InputError: there is no pair at all.
    """
    root = frames.require_folder(root)
    if (root / source.TFDS_FILE).is_file():
        raise InputError(
            f"The folder {root} is a prepared data set (it holds {source.TFDS_FILE}), whose frames "
            "were checked when it was made: give the folder it was made from."
        )
    refused: list[InputError] = []
    names = [path.name for path in stereolunar.split_files(root)] if split is None else [split]
    refs = [
        ref
        for name in names or [None]
        for ref in source.find_pairs(root, name, on_error=refused.append)
    ]
    return refs, refused


def validate(
    root: str | os.PathLike,
    refs: Sequence[PairRef],
    refused: Sequence[InputError] = (),
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Reads every frame of `refs`, and holds the two depth maps of each geometry to each other.

    refused: errors of pairs that could not even be listed
    """
    findings = [Finding(True, str(error)) for error in refused]
    sizes: dict[pathlib.Path, str] = {}
    broken: set[pathlib.Path] = set()
    agreements: dict[str, Agreement] = {}
    for ref in refs:
        views = []
        for files in ref.frames:
            if files.image in broken:
                continue
            try:
                view = frames.load_frame(files)
            except InputError as error:
                broken.add(files.image)
                findings.append(Finding(True, str(error)))
                continue
            if files.image not in sizes:
                findings += _look_at(files, view)
                sizes[files.image] = frames.size_text(view.valid.shape)
            views.append(view)
        progress(1)
        if len(views) == 2:
            findings += _compare(ref, views, agreements)
    counts = dict(collections.Counter(sizes.values()))
    if len(counts) > 1:
        said = ", ".join(f"{count} of {size}" for size, count in counts.items())
        findings.append(
            Finding(
                source.is_stereolunar(pathlib.Path(root)),
                f"The frames under {root} have {len(counts)} sizes ({said}), expected one: sort "
                "them into a folder each, or resize them.",
            )
        )
    findings += _leaks(pathlib.Path(root))
    return Report(
        root=str(root),
        pairs=len(refs),
        geometries=len({ref.geometry for ref in refs}),
        frames=len(sizes) + len(broken),
        trajectories=dict(collections.Counter(ref.trajectory for ref in refs)),
        sizes=counts,
        agreements=agreements,
        findings=sorted(findings, key=lambda f: not f.error),
    )


def _look_at(files: FrameFiles, view: Frame) -> list[Finding]:
    """Warnings on one frame that can be read."""
    findings = []
    if files.camera is not None and files.camera.stem != files.image.stem:
        findings.append(
            Finding(
                False,
                f"The frame {files.image} has no camera file of its own: it is read with "
                f"{files.camera.name}, whose frame has the same depth file.",
            )
        )
    if files.depth is not None and not view.valid.all():
        depth = images.read_depth(files.depth)
        infinite, nothing = int(np.isinf(depth).sum()), int((depth <= 0).sum())
        if infinite:
            findings.append(
                Finding(
                    False,
                    f"The depth file {files.depth} is infinite at {infinite} of {depth.size} "
                    f"pixels (largest finite depth {depth[np.isfinite(depth)].max():.0f} m; HALF "
                    "ends at 65504 m): they are masked.",
                )
            )
        if nothing:
            findings.append(
                Finding(
                    False,
                    f"The depth file {files.depth} is 0 or less at {nothing} of {depth.size} "
                    "pixels: they are masked.",
                )
            )
    return findings


def _compare(ref: PairRef, views: list[Frame], agreements: dict[str, Agreement]) -> list[Finding]:
    """What is wrong between two frames; their agreement is kept, once for each geometry."""
    try:
        frames.check_sizes(ref, [view.valid.shape for view in views])
    except InputError as error:
        return [Finding(True, str(error))]
    with_truth = all(files.depth and files.camera for files in ref.frames)
    if ref.geometry in agreements or not with_truth:
        return []
    pair = frames.make_pair(ref.name, ref.geometry, ref.trajectory, views)
    seen = agreement(pair)
    if seen.overlap > 0:
        agreements[ref.geometry] = seen
    if seen.overlap < MIN_OVERLAP:
        return [
            Finding(
                True,
                f"The views of pair {ref.name} see no common ground (overlap "
                f"{100 * seen.overlap:.2g} %, expected {100 * MIN_OVERLAP:g} % or more): check "
                "`cam2world`, which maps the camera to the world.",
            )
        ]
    if seen.median_px > MAX_DISAGREEMENT_PX:
        return [
            Finding(
                True,
                f"The depth maps of pair {ref.name} disagree by {seen.median_m:.3g} m (median; "
                f"{seen.median_px:.2f} pixels, expected less than {MAX_DISAGREEMENT_PX}): check "
                "that depth is z-depth, not range, in metres, and that both poses are this pair's.",
            )
        ]
    bias = abs(seen.bias_m)
    for shift in (-0.5, 0.5):
        other = abs(agreement(pair, shift=shift).bias_m)
        footprint = seen.median_m / max(seen.median_px, 1e-9)
        if other < CONVENTION_GAIN * bias and bias > CONVENTION_BIAS_PX * footprint:
            return [
                Finding(
                    False,
                    f"The depth maps of pair {ref.name} agree better if the principal point is "
                    f"moved by {shift:+g} pixels (bias {bias:.3g} m, then {other:.3g} m): its K "
                    "may be in the other pixel convention.",
                )
            ]
    return []


def _leaks(root: pathlib.Path) -> list[Finding]:
    """Geometries that two split files share: suns of one camera pair must not straddle a split."""
    owners: dict[tuple, str] = {}
    shared: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in stereolunar.split_files(root):
        try:
            refs = stereolunar.find_pairs(root, path.name, on_error=lambda error: None)
        except InputError as error:
            return [Finding(True, str(error))]
        for cameras in {stereolunar.camera_key(ref) for ref in refs}:
            owner = owners.setdefault(cameras, path.name)
            if owner != path.name:
                shared[owner, path.name] += 1
    return [
        Finding(
            True,
            f"The split files {a} and {b} of {root} share {count} geometries, expected none: put "
            "all suns of a camera pair into one of them.",
        )
        for (a, b), count in shared.items()
    ]
