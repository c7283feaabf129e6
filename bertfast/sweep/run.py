"""`bertfast sweep`: a search over settings and seeds. Each trial is a `bertfast train` in a process of its own, in a folder of its own.

Optuna's journal in the sweep's folder holds the queue. A sweep that was stopped, or killed, goes on with it: what has finished is not done again,
and a trial that was cut short resumes from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.config import Config, configs_of
from bertfast.errors import BertfastError, ConfigError, Terminated
from bertfast.machine import cores, threads
from bertfast.readers import find_source
from bertfast.storage import write_json
from bertfast.sweep.report import REPORTS, Trial, brief, need_matplotlib, summarise, write_reports
from bertfast.sweep.space import Setting, Space, base_of, config_of, distributions, draw_settings, label_of, need_optuna, setting_of
from bertfast.sweep.trials import LOG, POLL_SECONDS, Command, Stop, alone_in, end, reason_of, score_name_of, score_of, seconds_of, start
from bertfast.tasks import get_task
from bertfast.wording import counted

TRIALS, JOURNAL = "trials", "sweep.journal"


@dataclass(frozen=True)
class Search:
    """What to try: a space, how many of its settings (None: the whole grid), and how many seeds each, from run.seed on."""

    space: Space
    seeds: int = 3
    trials: int | None = None
    retry_failed: bool = False
    keep_models: str = "best"  # or "all"


class Sweep:
    """Run the trials of a search that are not done yet.

    Args:
        config: from `load_config`; run.model_dir is the sweep's folder.
        places: see `places_of`.
        command: what trains one trial; it must leave results.json in the folder of its config.
        say: takes a line on what is going on.

    Raises:
        ConfigError: the space does not fit the config, or the folder holds another sweep.
        BertfastError: a library is missing, another sweep is at work in the folder, or no trial has succeeded.
    """

    def __init__(self, config: Config, search: Search, places: Sequence[str | None], command: Command, say: Callable[[str], None] = print):
        config = Config(config.deepspeed, config.bertfast.model_copy(update={"pretrain": None}), config.path)  # trials are fine-tuned
        self.config, self.search, self.places, self._command, self._say = config, search, places, command, say
        if config.bertfast.train_input is None or config.bertfast.eval_input is None:
            raise ConfigError(
                f"{config.path or 'config'}: a sweep needs bertfast.train_input to train on, and bertfast.eval_input to compare by"
            )
        self.folder = Path(config.bertfast.run.model_dir)
        self._optuna = need_optuna()
        need_matplotlib()
        self.base = base_of(config)
        self.settings = draw_settings(search.space, search.trials, config.bertfast.run.seed)
        from bertfast.sweep.checks import check_space  # and torch with it: what is wrong with flags or space has been told by now
        from bertfast.training import inputs_of, refuse_replacing

        read = [("--space", search.space.name), *inputs_of(config)]
        refuse_replacing(
            f"bertfast.run.model_dir = {json.dumps(str(self.folder))}",
            read,
            [self.folder / TRIALS],
            [self.folder / name for name in REPORTS],
        )
        check_space(config, search.space, self.settings, "cpu" if self.places[0] is None else "gpu")

    def run(self) -> dict[str, Any]:
        """Try all that is left; returns what sweep.json holds.

        Raises:
            KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; the trials that were at work have written checkpoints and ended.
        """
        with alone_in(self.folder, self._say) as lock, Stop() as stop:
            self._study = self._open_study()
            self._enqueue()
            try:
                self._work(stop, lock)
            finally:
                results = self.report()
        if stop.signal is not None:
            done = sum(trial.state == "complete" for trial in self.trials())
            self._say(f"stopped with {counted(done, 'trial')} complete; the same command goes on from here")
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt
            raise Terminated(f"stopped by SIGTERM; {self.folder} holds the sweep: the same command goes on with it")
        if results["best"] is None:
            failed = next(trial for trial in self.trials() if trial.state == "failed")
            raise BertfastError(f"{self.folder}: no trial has succeeded; the first one that failed says: {failed.error}")
        return results

    def trials(self) -> list[Trial]:
        """The trials so far, in the order of their settings and seeds; of one that was tried again, the last try."""
        found = {}
        for frozen in self._study.get_trials(deepcopy=False):
            setting, seed = frozen.user_attrs["setting"], frozen.user_attrs["seed"]
            folder = self._folder_of(setting, seed)
            state = {"FAIL": "failed"}.get(frozen.state.name, frozen.state.name.lower())
            found[setting, seed] = Trial(
                setting,
                seed,
                setting_of(self.search.space, frozen.params),
                state,
                frozen.value,
                str(folder),
                seconds_of(folder),
                reason_of(folder) if state == "failed" else None,
            )
        return [found[key] for key in sorted(found)]

    def report(self, with_plot: bool = True) -> dict[str, Any]:
        """Write sweep.json, the table, the best setting's config and the plot; returns what sweep.json holds."""
        trials = self.trials()
        names = (score_name_of(Path(trial.folder)) for trial in trials if trial.state == "complete")
        facts = {"config": str(self.config.path), "space": self.search.space.to_dict(), "score": next(names, None)}
        results = {**facts, **summarise(trials)}
        best = None
        if results["best"] is not None:
            raw = {**self.base, "bertfast": {**self.base["bertfast"]}}
            raw["bertfast"]["run"] = {**raw["bertfast"].get("run", {}), "model_dir": str(self.folder / "best")}
            best = config_of(raw, self.search.space, results["best"]["values"]).to_dict(defaults=False)
        write_reports(self.folder, results, best, with_plot)
        return results

    # --------------------------------------------------------------------------------------------------------------- the queue

    def _open_study(self):
        journal = self.folder / JOURNAL
        self._mend(journal)
        storages = self._optuna.storages
        storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(journal)))
        study = self._optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
        base = json.loads(json.dumps(self.base))
        base["bertfast"].get("run", {}).pop("model_dir", None)
        identity = {
            "the config": _digest(base),
            "the space": json.dumps(self.search.space.to_dict()),
            "a data file": _digest_of_data(self.config),
        }
        before = study.user_attrs.get("identity", identity)
        for name, value in identity.items():
            if before.get(name, value) != value:  # an earlier bertfast did not write down the data
                raise ConfigError(
                    f"{self.folder}: holds a sweep in which {name} was another; give another --model_dir, or delete that folder"
                )
        study.set_user_attr("identity", identity)
        return study

    @staticmethod
    def _mend(journal: Path) -> None:
        """Take away what a kill may leave: a line that is cut short, and the lock of its writer. Nobody else is at work here."""
        Path(f"{journal}.lock").unlink(missing_ok=True)
        if journal.is_file() and not (text := journal.read_bytes()).endswith(b"\n"):
            os.truncate(journal, text.rfind(b"\n") + 1)

    def _enqueue(self) -> None:
        """Put in the queue what is not in the study yet, and with retry_failed what has failed."""
        states = self._optuna.trial.TrialState
        frozen = self._study.get_trials(deepcopy=False)
        latest = {(trial.user_attrs["setting"], trial.user_attrs["seed"]): trial.state for trial in frozen}
        stored = {trial.user_attrs["setting"]: trial.params for trial in frozen}
        kinds, first = distributions(self.search.space), self.config.bertfast.run.seed
        for seed in range(first, first + self.search.seeds):
            for number, setting in enumerate(self.settings):
                state = latest.get((number, seed))
                if state is None or (state == states.FAIL and self.search.retry_failed):
                    params = stored.get(number) or {key: label_of(value) for key, value in setting.items()}
                    attributes = {"setting": number, "seed": seed}
                    self._study.add_trial(
                        self._optuna.create_trial(state=states.WAITING, params=params, distributions=kinds, user_attrs=attributes)
                    )

    def _next(self, resumed: list[Any]):
        """A trial that was cut short, or else the first of the queue; None where there is neither."""
        if resumed:
            return resumed.pop(0)
        waiting = self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.WAITING,))
        return self._study.ask() if waiting else None

    # -------------------------------------------------------------------------------------------------------------- the trials

    def _work(self, stop: Stop, lock: int) -> None:
        resumed = self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,))
        free, at_work = list(self.places), {}
        total = len(self.settings) * self.search.seeds
        self._say(
            f"{counted(len(self.settings), 'setting')} of {self.search.space.name} x {counted(self.search.seeds, 'seed')}: {counted(total, 'trial')}"
        )
        try:
            while not stop.signal:
                while free and not stop.signal and (trial := self._next(resumed)) is not None:
                    if not self._tell_if_done(trial):
                        place = free.pop(0)
                        at_work[self._start(trial, place, lock)] = (trial, place)
                if not at_work:
                    return
                for process in [process for process in at_work if process.poll() is not None]:
                    trial, place = at_work.pop(process)
                    free.append(place)
                    self._tell(trial)
                time.sleep(POLL_SECONDS)
        finally:
            end(at_work, stop)
            for trial, _ in at_work.values():
                self._tell_if_done(trial)

    def _start(self, trial: Any, place: str | None, lock: int) -> Any:
        folder, file = self._folder(trial), self._folder(trial) / "config.json"
        setting = setting_of(self.search.space, trial.params)
        write_json(file, self._trial_config(setting, trial.user_attrs["seed"], folder))
        return start(self._command(file), folder, place, lock)

    def _trial_config(self, setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
        block = {key: value for key, value in self.base["bertfast"].items() if key != "export"}  # only the best is worth an export
        run = {**block.get("run", {}), "model_dir": str(folder), "seed": seed}
        if len(self.places) > 1 and self.places[0] is None:
            run.setdefault("threads", min(threads(), max(1, cores() // len(self.places))))
        return config_of({**self.base, "bertfast": {**block, "run": run}}, self.search.space, setting).to_dict(defaults=False)

    def _tell_if_done(self, trial: Any) -> bool:
        """Record a trial that has left its results, be it in an earlier sweep that was killed before it could note so."""
        score = score_of(self._folder(trial))
        if score is not None:
            self._tell(trial)
        return score is not None

    def _tell(self, trial: Any) -> None:
        """Record how a trial ended, say so, and write the reports anew."""
        folder, score = self._folder(trial), score_of(self._folder(trial))
        name = f"{brief(setting_of(self.search.space, trial.params))}, seed {trial.user_attrs['seed']}"
        if score is None:
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
            self._say(f"{name}: failed: {reason_of(folder)} (see {folder / LOG})")
        else:
            self._study.tell(trial.number, score)
            self._say(f"{name}: {score:.4f}")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self._drop_models()
        self.report(with_plot=False)

    def _drop_models(self) -> None:
        """Keep the model of the best trial alone, unless all are to be kept."""
        complete = [trial for trial in self.trials() if trial.state == "complete"]
        if self.search.keep_models == "all" or not complete:
            return
        best = max(complete, key=_score)
        for trial in complete:
            if trial is not best:
                shutil.rmtree(Path(trial.folder) / "model", ignore_errors=True)

    def _folder(self, trial: Any) -> Path:
        return self._folder_of(trial.user_attrs["setting"], trial.user_attrs["seed"])

    def _folder_of(self, setting: int, seed: int) -> Path:
        return self.folder / TRIALS / f"{setting:03d}-seed-{seed}"


def _score(trial: Trial) -> float:
    assert trial.score is not None, "asked of a trial that is complete"
    return trial.score


def _digest_of_data(config: Config) -> str:
    """A hash of the files that the trials train on and are compared by; an input_fn has none."""
    found = []
    for part in configs_of(config):
        task = get_task(part.bertfast.task)
        for source, splits in ((part.bertfast.train_input, task.train_splits), (part.bertfast.eval_input, task.eval_splits)):
            if source is not None and source.input_fn is None:
                found += [find_source(task, source, split).digest() for split in splits]
    return _digest(found)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
