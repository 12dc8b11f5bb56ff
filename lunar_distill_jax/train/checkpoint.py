"""Orbax checkpoints: complete or absent, the last two kept."""

from __future__ import annotations

import os
import pathlib

import jax
import orbax.checkpoint as ocp

from lunar_distill_jax.errors import InputError
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
        """The latest saved state, shaped and placed like `state`; `state` itself if there is none.

        Raises:
          InputError: what was saved is the state of another network or other losses.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
        except (ValueError, KeyError, TypeError) as e:  # orbax names no tree that does not match
            raise InputError(
                f"The checkpoint of step {step} in {self._manager.directory} is of another network "
                "or other losses than this run: give a new workdir, or the settings it began with."
            ) from e

    def save(self, state: TrainState, *, force: bool = False) -> None:
        """Saves in the background where the step is due, or at once where `force` says so."""
        step = int(state.step)
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state), force=force)
