"""Orbax checkpoints: written in the background, complete or absent, read on any mesh."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.progress import say
from lunar_distill_jax.train.state import TrainState

FOLDER, DAMAGED = "checkpoints", "damaged"
FULL = ("No space left on device", "ENOSPC", "Disk quota exceeded")


class Keep:
    """Which checkpoints stay: the last ones, every so many steps, and the best of each data set.

    best: {data set: step}, written by who evaluates
    """

    def __init__(self, last: int, every: int):
        self._last, self._every = last, every
        self.best: dict[str, int] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        chosen = {*steps[len(steps) - self._last :], *self.best.values()}
        return [s in chosen or bool(self._every and s % self._every == 0) for s in steps]


def has_saved(workdir: str | os.PathLike) -> bool:
    """Whether there is a whole checkpoint; what a save that was killed left behind is none."""
    return any(path.name.isdigit() for path in pathlib.Path(workdir, FOLDER).glob("*"))


def check_start(start_from: str, workdir: str | os.PathLike) -> None:
    """Raises InputError where the run in `workdir` is to begin with what another run saved in
    `config.start_from`, and there is nothing.
    """
    if start_from and not has_saved(workdir) and not has_saved(start_from):
        raise InputError(
            f"config.start_from is {start_from}, which holds no checkpoint: give the workdir of a "
            "run that has saved one."
        )


class Checkpoints:
    """Saves and restores a `TrainState` and a record beside it; use it as a context manager.

    workdir: the run's; its checkpoints/ has a folder for each step, and what could not be read is
             moved to its damaged/
    every:   steps between checkpoints; `last` and `keep_every`: see `Keep`
    """

    def __init__(self, workdir: str | os.PathLike, every: int, last: int = 2, keep_every: int = 0):
        self._workdir, self._every = pathlib.Path(workdir).absolute(), every
        self.keep = Keep(last, keep_every)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=1,  # `due` decides
            preservation_policy=self.keep,
            cleanup_tmp_directories=True,  # of a save that was killed
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(
            self._workdir / FOLDER,
            options=options,
            item_handlers=handlers,  # so that metadata can be read first
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            with self.full_disk("the last checkpoint"):
                self._manager.close()  # waits for a save that is under way
        except InputError:
            if kind is None:  # else another error is being told, likely the same one
                raise

    @property
    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def restore(
        self, state: TrainState, only: Collection[str] | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """-> (the latest saved state, shaped and placed like `state`; its record)

        `state` itself and {} if there is none. One that cannot be read is moved aside, which is
        said on stderr, and the one before it is taken.

        only: names of students; others may be in the checkpoint and are left there, and the losses
            that had a weight there need not be those of `state`

        Raises:
          InputError: what was saved is the state of another network or other losses, or none of
            the checkpoints can be read.
        """
        shapes = jax.tree.map(_placed, state)
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                if only is not None:
                    shapes = self._with_saved_weights(step, shapes)
                self._check_match(step, shapes, only)
                args = ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        shapes,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
                        partial_restore=only is not None,
                    ),
                    record=ocp.args.JsonRestore(),
                )
                found = self._manager.restore(step, args=args)
                return found["state"], found["record"]
            except InputError:
                raise
            except Exception as e:  # whatever orbax and tensorstore raise for a damaged file
                self._set_aside(step, e)
        if steps:
            raise InputError(
                f"No checkpoint in {self._workdir / FOLDER} can be read (steps "
                f"{', '.join(map(str, reversed(steps)))}; they are in {self._workdir / DAMAGED}): "
                "run the command again to begin from step 0, or give a new workdir."
            )
        return state, {}

    def _set_aside(self, step: int, error: Exception) -> None:
        to = self._workdir / DAMAGED / str(step)
        if jax.process_index() == 0:
            to.parent.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):
                os.replace(self._workdir / FOLDER / str(step), to)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(
            f"The checkpoint of step {step} cannot be read ({first[:160]}): it is now {to}, and "
            "the one before it is taken."
        )
        self._manager.close()
        self._manager = self._open()

    def _with_saved_weights(self, step: int, shapes: TrainState) -> TrainState:
        """`shapes` with the losses' weights that the checkpoint holds."""
        leaves = jax.tree.leaves(self._manager.item_metadata(step)["state"])
        students = {}
        for name, student in shapes.students.items():
            start = f"students.{name}.weights."
            terms = [n.removeprefix(start) for leaf in leaves if (n := leaf.name).startswith(start)]
            students[name] = student.replace(weights=dict.fromkeys(terms, student.lr))
        return shapes.replace(students=students)

    def _check_match(self, step: int, shapes: TrainState, only: Collection[str] | None) -> None:
        """Compares names, shapes and dtypes before any array is read: orbax itself fails midway."""
        saved = {
            leaf.name: f"{leaf.dtype}{list(leaf.shape)}"
            for leaf in jax.tree.leaves(self._manager.item_metadata(step)["state"])
        }
        needed = {
            ".".join(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in ocp.tree.to_flat_dict(shapes).items()
        }
        names = needed.keys() if only is not None else saved.keys() | needed.keys()
        for name in sorted(names):
            holds, wants = (tree.get(name, "nothing") for tree in (saved, needed))
            if holds != wants:
                raise InputError(
                    f"The checkpoint of step {step} in {self._manager.directory} is of another "
                    f"network or other losses than this run: {name} is {holds} there and {wants} "
                    "here; give a new workdir, or the settings it began with."
                )

    def save(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Begins to save; the device's arrays are copied at once, files are written meanwhile.

        Raises:
          InputError: the disk is full, at this save or at the one before it.
        """
        step = int(state.step)
        if step == self.latest:
            return
        with self.full_disk(f"the checkpoint of step {step}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            args = ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(dict(record))
            )
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises as `save` does."""
        with self.full_disk("the last checkpoint"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def full_disk(self, what: str) -> Iterator[None]:
        """Turns the errors of a full disk inside into the sentence that says what to do."""
        try:
            yield
        except InputError:
            raise
        except Exception as e:
            if not is_full(e):
                raise
            good = [int(p.name) for p in (self._workdir / FOLDER).iterdir() if p.name.isdigit()]
            kept = f"that of step {max(good)} is kept" if good else "there is none before it"
            raise InputError(
                f"The disk of {self._workdir} is full: {what} could not be written, {kept}; make "
                "room and run the same command again to go on from it."
            ) from e


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that there is no room on the disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Where a leaf must come to lie: where it is now, whatever mesh it was saved from."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        leaf = np.asarray(leaf)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
