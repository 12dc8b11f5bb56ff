"""StereoLunar as a tensorflow-datasets builder: ArrayRecord files, random access, no TensorFlow.

An example is a stereo pair under one sun. Pairs whose views have different suns are made from two
examples of one geometry when they are read (`PreparedPairs`).
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lunar_distill_jax.data import frames, splits, stereolunar
from lunar_distill_jax.data.frames import Frame, PairRef
from lunar_distill_jax.data.write import overlap
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair

TRAJECTORIES = ("nadir", "oblique", "dynamic", "unknown")
LAYOUTS = {
    "v1": "STEM.jpg, .exr and .npz side by side, as in the archive of 2025",
    "v2": "in the sub-folders images/, depth/ and cameras/",
}


@dataclasses.dataclass
class StereoLunarConfig(tfds.core.BuilderConfig):
    """trajectory: "all" or one of `TRAJECTORIES`; layout: a key of `LAYOUTS`."""

    trajectory: str = "all"
    layout: str = "v1"


def _config(layout: str, trajectory: str) -> StereoLunarConfig:
    name = layout if trajectory == "all" else f"{layout}_{trajectory}"
    kind = "all trajectories" if trajectory == "all" else f"{trajectory} pairs"
    return StereoLunarConfig(
        name=name,
        description=f"{kind}; files lie {LAYOUTS[layout]}",
        trajectory=trajectory,
        layout=layout,
    )


class StereoLunar(tfds.core.GeneratorBasedBuilder):
    """Stereo pairs of the lunar south pole with exact depth and poses."""

    # tfds 4.9.10 looks for it with importlib_resources, which it does not require.
    code_path: Any = pathlib.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Principal points are for integer pixel centres."}
    BUILDER_CONFIGS = [_config(layout, t) for layout in LAYOUTS for t in ("all", *TRAJECTORIES[:3])]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
Download StereoLunar from https://zenodo.org/records/17514376, unpack it, and give the folder that
holds its scene folders as manual_dir. Where it holds train.npz and test.npz they are the splits;
else a tenth of the geometries is held out for testing."""

    def _info(self) -> tfds.core.DatasetInfo:
        def of(shape, dtype, desc, units):
            doc = tfds.features.Documentation(desc=desc, value_range=units)
            # Raw bytes: a list of floats is three times slower to read.
            return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes", doc=doc)

        def image(view):
            doc = tfds.features.Documentation(desc=f"photograph of view {view}, the file's bytes")
            return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg", doc=doc)

        depth = "z-depth; 0 or inf where there is no ground"
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://zenodo.org/records/17514376",
            features=tfds.features.FeaturesDict(
                {
                    "name": tfds.features.Text(doc="unique"),
                    "geometry": tfds.features.Text(doc="shared by pairs that differ in their sun"),
                    "trajectory": tfds.features.ClassLabel(names=TRAJECTORIES),
                    "image1": image(1),
                    "image2": image(2),
                    "depth1": of((None, None), np.float32, f"view 1: {depth}", "metres"),
                    "depth2": of((None, None), np.float32, f"view 2: {depth}", "metres"),
                    "intrinsics": of((2, 3, 3), np.float64, "K for pixel centres", "pixels"),
                    "cam2world": of((2, 4, 4), np.float64, "OpenCV camera to Moon", "metres"),
                    "overlap": tfds.features.Scalar(np.float32, doc="ground seen by both, 0 to 1"),
                }
            ),
            supervised_keys=None,
            disable_shuffling=True,  # the readers shuffle; the index below counts on the order
            metadata=tfds.core.MetadataDict({"geometries": {}}),
        )

    def _split_generators(self, dl_manager):
        root = pathlib.Path(dl_manager.manual_dir)
        config: Any = self.builder_config
        metadata: Any = self.info.metadata
        parts = find_splits(root, config)
        for name, refs in parts.items():
            # For pairs across suns a reader must know the geometries without reading examples.
            numbers = {g: i for i, g in enumerate(dict.fromkeys(ref.geometry for ref in refs))}
            metadata["geometries"][name] = [numbers[ref.geometry] for ref in refs]
        return {name: self._generate_examples(refs) for name, refs in parts.items()}

    def _generate_examples(self, refs: Sequence[PairRef]) -> Iterator[tuple[int, dict]]:
        overlaps: dict[str, float] = {}
        like = frames.first_size(refs) if refs else None
        for index, ref in enumerate(refs):
            pair = frames.load_pair(ref, like=like)
            if ref.geometry not in overlaps:
                overlaps[ref.geometry] = overlap(pair)
            depths = [np.where(v, d, np.inf) for d, v in zip(pair.depth_m, pair.valid, strict=True)]
            yield (
                index,
                {
                    "name": ref.name,
                    "geometry": ref.geometry,
                    "trajectory": ref.trajectory,
                    "image1": ref.frames[0].image.read_bytes(),
                    "image2": ref.frames[1].image.read_bytes(),
                    "depth1": depths[0],
                    "depth2": depths[1],
                    "intrinsics": pair.K,
                    "cam2world": pair.T_world_cam,
                    "overlap": overlaps[ref.geometry],
                },
            )


def find_splits(root: pathlib.Path, config: StereoLunarConfig) -> dict[str, list[PairRef]]:
    """{"train", "test": the pairs}, no geometry in both.

    Raises:
      InputError: the folder cannot be used, is in the other layout, or has no pair of `config`'s
        trajectory; or its own splits share a geometry.
    """
    named = {path.stem: path.name for path in stereolunar.split_files(root)}
    if {"train", "test"} <= named.keys():
        parts: dict[str, list[PairRef]] = {
            k: stereolunar.find_pairs(root, named[k]) for k in ("train", "test")
        }
        a, b = ({stereolunar.camera_key(ref) for ref in refs} for refs in parts.values())
        if a & b:
            raise InputError(
                f"The splits train.npz and test.npz of {root} share {len(a & b)} geometries, "
                "expected none: put all suns of a camera pair into one of them."
            )
        parts = {name: _chosen(root, refs, config) for name, refs in parts.items()}
    else:
        refs = _chosen(root, stereolunar.find_pairs(root), config)
        parts = dict(zip(("train", "test"), splits.split_by_geometry(refs), strict=True))
    return parts


def _chosen(
    root: pathlib.Path, refs: Sequence[PairRef], config: StereoLunarConfig
) -> list[PairRef]:
    chosen = [ref for ref in refs if config.trajectory in ("all", ref.trajectory)]
    if not chosen:
        found = ", ".join(sorted({ref.trajectory for ref in refs}))
        raise InputError(
            f"The folder {root} holds no {config.trajectory} pairs (found {found}): choose another "
            "config, or another folder."
        )
    layout = "v2" if chosen[0].frames[0].image.parent.name == "images" else "v1"
    if layout != config.layout:
        raise InputError(
            f"The files of {root} lie {LAYOUTS[layout]}, the config {config.name} expects them "
            f"{LAYOUTS[config.layout]}: choose the config {layout}."
        )
    return chosen


def prepare(
    folder: str | os.PathLike, data_dir: str | os.PathLike, config: str = "v1"
) -> pathlib.Path:
    """Imports a local StereoLunar folder; returns the data set's folder, which `PreparedPairs` and
    `tfds.builder_from_directory` read. It appears when it is complete.

    Raises:
      InputError: the folder or one of its frames cannot be used, or there is no such config.
    """
    frames.require_folder(folder)
    if config not in (names := [c.name for c in StereoLunar.BUILDER_CONFIGS]):
        raise InputError(f"Unknown config {config!r}: choose from {', '.join(names)}.")
    builder = StereoLunar(config=config, data_dir=os.fspath(data_dir), file_format="array_record")
    download = tfds.download.DownloadConfig(manual_dir=os.fspath(folder))
    try:
        builder.download_and_prepare(download_config=download)
    except Exception as error:
        # tfds wraps what its generators raise into longer stories; the user needs the first one.
        cause: BaseException | None = error
        while cause is not None and (not isinstance(cause, InputError) or "\n" in str(cause)):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None
    return pathlib.Path(builder.data_dir)


class PreparedPairs(Sequence[StereoPair]):
    """The pairs of a prepared data set, read when asked for.

    Args:
      folder: what `prepare` returned: the folder of dataset_info.json
      split: "train" or "test"
      size: None keeps the frames' own; n or (height, width) resamples them
      lighting: "same", "cross" (view 1 of one example, view 2 of another one) or "all"

    Raises:
      InputError: the folder cannot be read, or has no such split or pairs.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str = "train",
        *,
        size: int | tuple[int, int] | None = None,
        lighting: str = "same",
    ):
        splits.check_lighting(lighting)
        try:
            builder: Any = tfds.builder_from_directory(os.fspath(folder))
            geometries = builder.info.metadata["geometries"]
        except Exception as e:
            raise InputError(
                f"The folder {folder} is not a prepared StereoLunar data set "
                f"({type(e).__name__}): prepare it again."
            ) from e
        if split not in geometries:
            raise InputError(
                f"The data set {folder} has no split {split!r}: choose from "
                f"{', '.join(geometries)}."
            )
        self._examples = builder.as_data_source(split=split)
        self._labels = builder.info.features["trajectory"]
        self._size = size
        self.pairs = np.array(_index_pairs(geometries[split], lighting), int).reshape(-1, 2)
        if not len(self.pairs):
            raise InputError(
                f"The split {split} of {folder} has no pairs for lighting {lighting!r} (one sun a "
                "geometry): choose 'same'."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):  # type: ignore[override]  # no slices
        first, second = (int(i) for i in self.pairs[index])
        a = self._examples[first]
        b = a if second == first else self._examples[second]
        views = [_frame(a, 0), _frame(b, 1)]
        if self._size is not None:
            new = (self._size, self._size) if isinstance(self._size, int) else self._size
            views = [frames.resize_frame(view, new) for view in views]
        name = a["name"].decode()
        if b is not a:
            name = f"{name.rpartition('-')[0]}-{b['name'].decode().rpartition('-')[2]}"
        trajectory = self._labels.int2str(int(a["trajectory"]))
        return frames.make_pair(name, a["geometry"].decode(), trajectory, views)


def _index_pairs(geometries: Sequence[int], lighting: str) -> list[tuple[int, int]]:
    """(example of view 1, example of view 2) of each pair."""
    out = [(i, i) for i in range(len(geometries))] if lighting != "cross" else []
    if lighting != "same":
        groups = collections.defaultdict(list)
        for i, geometry in enumerate(geometries):
            groups[geometry].append(i)
        out += [(i, j) for group in groups.values() for i in group for j in group if i != j]
    return out


def _frame(example: dict, view: int) -> Frame:
    depth = example[f"depth{view + 1}"]
    valid = np.isfinite(depth) & (depth > 0)
    return Frame(
        example[f"image{view + 1}"],
        np.where(valid, depth, 0),
        valid,
        example["intrinsics"][view],
        example["cam2world"][view],
    )
