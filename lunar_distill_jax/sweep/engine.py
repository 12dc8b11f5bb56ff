"""The queue of a sweep: Optuna's ask-and-tell over a storage that all workers share.

What Optuna calls a trial is one group here, and what it calls a study is one round: all groups that
were planned together. A round after the first holds what the rounds before it left without a
result. Whoever creates a round plans it; everybody else waits for the plan, so that any number of
workers on any hosts see the same groups.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.sweep.trials import Spec
from lunar_distill_jax.train.workdir import OF_THE_MACHINE, changes, flat

POLL, PATIENCE = 0.5, 60.0  # seconds between looks; until a creator who is silent counts as dead
GROUP, TRIALS, PLANNED, CONFIG, RESULTS = "group", "trials", "planned", "config", "results"


@dataclasses.dataclass(frozen=True)
class Settings:
    """heartbeat: seconds; a group is given to another worker after three of them without a sign"""

    retries: int
    heartbeat: int


class Queue:
    """The storage at `url`, and the rounds of the sweep `name` in it.

    Raises:
      InputError: Optuna is not installed, or the storage cannot be opened.
    """

    def __init__(self, url: str, name: str, settings: Settings):
        try:
            import optuna
        except ImportError as e:
            raise InputError("A sweep needs Optuna: pip install 'lunar-distill-jax[sweep]'.") from e
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._name, self._settings = optuna, name, settings
        # Of the heartbeat: that it may change, and that `optimize` is what it was made for.
        warnings.filterwarnings("ignore", module="optuna|lunar_distill_jax.sweep.engine")
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=settings.retries)
        self._storage = self._connect(url, retry)

    def _connect(self, url: str, retry: Any):
        """The storage; a few tries, as workers that start at once create its tables at once."""
        for left in (2, 1, 0):
            try:
                return self._optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=(
                        {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
                    ),
                    heartbeat_interval=self._settings.heartbeat,
                    grace_period=3 * self._settings.heartbeat,
                    heartbeat_stale_trial_callback=retry,
                )
            except Exception as e:  # of SQLAlchemy, or of a database's driver
                if not left:
                    last = (str(e).strip().splitlines() or [type(e).__name__])[0]
                    shown = re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)
                    raise InputError(
                        f"Cannot open the storage {shown}: {last.replace(url, shown)}. Give "
                        "sqlite:///FILE, or such as postgresql+psycopg://USER@HOST/DATABASE with "
                        "its driver installed."
                    ) from e
                time.sleep(1)
        raise AssertionError("unreachable")

    def rounds(self) -> int:
        names = set(self._optuna.study.get_all_study_names(self._storage))
        return next(k for k in range(len(names) + 1) if self._study_name(k) not in names)

    def results(self) -> dict[str, dict[str, Any]]:
        """{trial: its result} of all rounds; one without a failure is never replaced by another."""
        found: dict[str, dict[str, Any]] = {}
        for k in range(self.rounds()):
            for trial in sorted(self._trials(k), key=lambda t: t.number):
                for name, text in trial.user_attrs.items():
                    if name.startswith(f"{RESULTS}:"):
                        spec, result = name.partition(":")[2], json.loads(text)
                        if spec not in found or "failure" in found[spec]:
                            found[spec] = result
            for spec, result in self._lost(k).items():
                found.setdefault(spec, result)
        return found

    def _lost(self, k: int) -> dict[str, dict[str, Any]]:
        """Trials of groups whose workers died more often than they are tried again."""
        states = self._optuna.trial.TrialState
        by_group: dict[str, list] = {}
        for trial in self._trials(k):
            if GROUP in trial.user_attrs:
                by_group.setdefault(trial.user_attrs[GROUP], []).append(trial)
        why = "Its worker died {} times without a word (memory, or a signal)."
        return {
            spec: {"failure": why.format(len(tries))}
            for tries in by_group.values()
            if all(t.state == states.FAIL for t in tries)
            for spec in tries[0].user_attrs[TRIALS]
        }

    def check_config(self, table: Mapping[str, Any]) -> None:
        """Raises InputError if the rounds that there are were planned for another sweep.

        How much of the machine it uses may have changed since: after an out-of-memory it must.
        """
        for k in range(self.rounds()):
            before = self._open(k).user_attrs.get(CONFIG)
            if before is None:
                continue
            free = [f"{trial}.{key}" for trial in table for key in OF_THE_MACHINE]
            for key, old, new in changes(flat(json.loads(before)), flat(table), free):
                raise InputError(
                    f"The sweep {self._name} was begun with {key} = {old}, and now it is {new}: "
                    "give a new --workdir (and --storage), or the config that it began with."
                )

    def unfinished(self, k: int) -> bool:
        states = self._optuna.trial.TrialState
        study = self._open(k)
        if PLANNED not in study.user_attrs:
            return True
        self._optuna.storages.fail_stale_trials(study)
        return any(t.state in (states.WAITING, states.RUNNING) for t in self._trials(k))

    def plan(
        self, k: int, table: Mapping[str, Any], groups: Callable[[], Sequence[Sequence[Spec]]]
    ) -> None:
        """Creates round k and queues its groups, or waits until somebody else has done so."""
        try:
            study = self._optuna.create_study(storage=self._storage, study_name=self._study_name(k))
        except self._optuna.exceptions.DuplicatedStudyError:
            if self._planned(k):
                return
            study = self._open(k)  # its creator is gone: what is queued already stays
        study.set_user_attr(CONFIG, json.dumps(table))
        queued = {t.user_attrs.get(GROUP) for t in self._trials(k)}
        for i, group in enumerate(groups()):
            name = f"round{k}-group{i}"
            if name not in queued:
                attributes = {GROUP: name, TRIALS: [spec.name for spec in group]}
                study.enqueue_trial({}, user_attrs=attributes)
        study.set_user_attr(PLANNED, True)

    def _planned(self, k: int) -> bool:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if PLANNED in self._open(k).user_attrs:
                return True
            time.sleep(POLL)
        return False

    def drain(self, k: int, work: Callable[[str, Sequence[str]], Mapping[str, Any]]) -> int:
        """Takes groups of round k until none is left or running anywhere -> how many it did.

        work: (group, names of its trials) -> {trial: result}; what it raises gives the group back
        """
        states = self._optuna.trial.TrialState
        done = 0
        while True:
            study = self._open(k)
            self._optuna.storages.fail_stale_trials(study)
            left = {t.state for t in self._trials(k)}
            if states.WAITING not in left:
                if states.RUNNING not in left:
                    return done
                time.sleep(POLL)
                continue
            trial = study.ask()
            if GROUP not in trial.user_attrs:  # another worker was quicker
                study.tell(trial, state=states.PRUNED)
                continue
            with self._beating(trial._trial_id):
                group, names = trial.user_attrs[GROUP], trial.user_attrs[TRIALS]
                try:
                    found = work(group, names)
                except BaseException:
                    study.enqueue_trial({}, user_attrs={GROUP: group, TRIALS: names})
                    study.tell(trial, state=states.PRUNED)
                    raise
                for name, result in found.items():
                    trial.set_user_attr(f"{RESULTS}:{name}", json.dumps(result, default=str))
                study.tell(trial, float(len(found)))
            done += 1

    @contextlib.contextmanager
    def _beating(self, trial_id: int) -> Iterator[None]:
        """Signs of life; Optuna itself gives them inside `optimize` only."""
        stop = threading.Event()

        def beat():
            while not stop.wait(self._settings.heartbeat):
                with contextlib.suppress(Exception):  # a storage that is busy: the next one counts
                    self._storage.record_heartbeat(trial_id)

        self._storage.record_heartbeat(trial_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _study_name(self, k: int) -> str:
        return f"{self._name}-round{k}"

    def _open(self, k: int):
        return self._optuna.load_study(study_name=self._study_name(k), storage=self._storage)

    def _trials(self, k: int):
        return self._open(k).get_trials(deepcopy=False)
