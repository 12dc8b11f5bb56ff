"""Orbax checkpoints: complete or absent, the last two kept."""

from __future__ import annotations

import os
import pathlib

import jax
import orbax.checkpoint as ocp

from lunar_distill_jax.train.step import TrainState


class Checkpoints:
    """Saves and restores a `TrainState` under `folder`; use it as a context manager."""

    def __init__(self, folder: str | os.PathLike, every: int):
        options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=2)
        self._manager = ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for a save that is under way

    def restore(self, state: TrainState) -> TrainState:
        """The latest saved state, shaped and placed like `state`; `state` itself if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return state
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def save(self, state: TrainState, *, force: bool = False) -> None:
        """Saves in the background where the step is due, or at once where `force` says so."""
        step = int(state.step)
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state), force=force)
