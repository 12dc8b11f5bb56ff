"""Orbax checkpoints: complete or absent, the last two kept."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train.state import TrainState


class Checkpoints:
    """Saves and restores a `TrainState` under `folder`; use it as a context manager."""

    def __init__(self, folder: str | os.PathLike, every: int):
        options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=2)
        self._manager = ocp.CheckpointManager(
            pathlib.Path(folder).absolute(),
            options=options,
            item_handlers=ocp.StandardCheckpointHandler(),  # so that metadata can be read first
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for a save that is under way

    def restore(self, state: TrainState) -> TrainState:
        """The latest saved state, shaped and placed like `state`; `state` itself if there is none.

        Raises:
          InputError: what was saved is the state of another network or other losses.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        self._check_match(step, shapes)
        restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
        return restored

    def _check_match(self, step: int, shapes: TrainState) -> None:
        """Compares names, shapes and dtypes before any array is read: orbax itself fails midway."""
        saved = {
            leaf.name: f"{leaf.dtype}{list(leaf.shape)}"
            for leaf in jax.tree.leaves(self._manager.item_metadata(step))
        }
        needed = {
            ".".join(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in ocp.tree.to_flat_dict(shapes).items()
        }
        for name in sorted(saved.keys() | needed.keys()):
            holds, wants = (tree.get(name, "nothing") for tree in (saved, needed))
            if holds != wants:
                raise InputError(
                    f"The checkpoint of step {step} in {self._manager.directory} is of another "
                    f"network or other losses than this run: {name} is {holds} there and {wants} "
                    "here; give a new workdir, or the settings it began with."
                )

    def save(self, state: TrainState, *, force: bool = False) -> None:
        """Saves in the background where the step is due, or at once where `force` says so."""
        step = int(state.step)
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state), force=force)
