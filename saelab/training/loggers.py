"""Show a run in wandb or TensorBoard, on request; whatever goes wrong in them, the run goes on.

The run's own record is `metrics.jsonl`. What is written here are copies for people to look at, under
`RUN/logs`: no data files, in no manifest, never compared. Neither package is imported unless asked
for. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from saelab.errors import UsageError
from saelab.storage.files import read_json, write_json
from saelab.storage.manifest import digest_of

LoggerName = Literal["tensorboard", "wandb"]
LOGGER_NAMES: tuple[str, ...] = get_args(LoggerName)
LOGS = "logs"
WANDB_PROJECT = "saelab"
Line = Mapping[str, float | None]


@runtime_checkable
class Logger(Protocol):
    """Shows lines of metrics somewhere."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show the values of one step."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told when it is opened."""

    folder: Path
    """`RUN/logs`."""
    name: str
    """Name of the run, for people."""
    config: dict[str, Any]
    """Its configuration as JSON values."""
    step: int
    """The step that it goes on from; 0 for a new run."""
    history: Path
    """Its `metrics.jsonl`, cut back to that step: shown first where the logger is new to the run."""


class Loggers:
    """The loggers of one run; each is switched off, with one line on standard error, once it fails."""

    def __init__(self) -> None:
        self._open: dict[str, Logger] = {}

    def add(self, name: str, make: Callable[[], Logger]) -> None:
        """Open a logger, or say in one line why it cannot be."""
        with self._guarded(name):
            self._open[name] = make()

    def log(self, line: Line) -> None:
        """Show a line of metrics: ``step``, and values of which those that are None are left out."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                _show(logger, line)

    def close(self) -> None:
        """Close every logger; nothing is shown after it."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                logger.close()
        self._open.clear()

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a logger does wrong, training does not stop for it
            self._open.pop(name, None)
            lines = str(error).split("\n")
            why = f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                why = f'{name} is not installed (pip install "saelab[loggers]")'
            sys.stderr.write(f"--log {name}: {why}; the run goes on without it\n")


def check_logger_names(names: tuple[str, ...]) -> None:
    """Refuse names that are no logger's, before anything starts.

    Raises:
        UsageError: Naming the first of them.
    """
    if unknown := [name for name in names if name not in LOGGER_NAMES]:
        raise UsageError(f"--log {unknown[0]} is unknown; known: {', '.join(LOGGER_NAMES)}")


def open_loggers(
    names: tuple[str, ...], folder: Path, run_name: str, config: dict[str, Any], step: int, *, history: Path
) -> Loggers:
    """Open the loggers of a run, new or resumed.

    No step is shown twice: a resumed run takes back what TensorBoard showed after ``step``, and does
    not tell wandb again what it was told before. A logger that is new to the run gets its past first.

    Args:
        names: ``tensorboard``, ``wandb``.
        folder: The run's folder; everything is written below its folder `logs`.
        run_name: Name of the run, for people.
        config: Its configuration as JSON values.
        step: The step that it goes on from; 0 for a new run.
        history: Its `metrics.jsonl`, cut back to ``step`` already.

    Raises:
        UsageError: A name is unknown. Nothing else is raised, here or later.
    """
    check_logger_names(names)
    run = LoggedRun(folder=folder / LOGS, name=run_name, config=config, step=step, history=history)
    loggers = Loggers()
    for name in dict.fromkeys(names):
        loggers.add(name, lambda name=name: _OPENERS[name](run))
    return loggers


class _TensorBoard:
    """Scalars in event files; a resumed run opens one more, which takes back later steps of the others."""

    def __init__(self, run: LoggedRun) -> None:
        import tensorboard  # noqa: F401  # pyright: ignore[reportMissingImports] - its absence is told by its name
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        is_new = not any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(folder, purge_step=run.step + 1)
        if is_new:
            text = json.dumps(run.config, indent=2, sort_keys=True)
            self._writer.add_text("config", f"```json\n{text}\n```", run.step)
            _show_history(self, run)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run that is killed has lost nothing that a resumed one would not show again

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A wandb run, offline unless the user's WANDB_MODE says otherwise.

    wandb takes nothing back, and a process that is killed loses what it told last. So a wandb run is
    only gone on with where the last process closed it, and the steps that it has are not told again;
    otherwise, and where another configuration goes on from an earlier step, a new one is told all.
    """

    def __init__(self, run: LoggedRun) -> None:
        mode = os.environ.get("WANDB_MODE") or "offline"
        if mode == "offline":  # wandb's reports of its own errors would look for a host even so
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)  # wandb writes to a temporary folder otherwise
        digest = digest_of(json.dumps(run.config, sort_keys=True).encode())
        self._closed = run.folder / "wandb.json"
        last = read_json(self._closed) if self._closed.exists() else None
        self._closed.unlink(missing_ok=True)
        if last is not None and last["config"] != digest and last["step"] > run.step:
            last = None
        self._mark = last or {"id": secrets.token_hex(4), "step": 0}
        self._mark |= {"config": digest}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            id=self._mark["id"],
            name=run.name,
            dir=run.folder,
            config=run.config,
            allow_val_change=True,
            mode=mode,  # pyright: ignore[reportArgumentType] - wandb checks the user's word
            resume="allow",
            reinit="create_new",  # members of a group are shown side by side
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        if last is None:
            _show_history(self, run)

    def log(self, step: int, values: dict[str, float]) -> None:
        if step > self._mark["step"]:
            self._run.log(values, step=step)
            self._mark["step"] = step

    def close(self) -> None:
        self._run.finish()
        write_json(self._closed, self._mark)


_OPENERS: dict[str, Callable[[LoggedRun], Logger]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def _show(logger: Logger, line: Line) -> None:
    values = {name: value for name, value in line.items() if value is not None}
    logger.log(int(values.pop("step")), values)


def _show_history(logger: Logger, run: LoggedRun) -> None:
    if run.step and run.history.exists():
        with run.history.open() as lines:
            for line in lines:
                _show(logger, json.loads(line))
