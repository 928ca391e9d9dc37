"""Find the last whole checkpoint of a run, and check that it belongs to the run that is resumed."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spring_rag.errors import TrainingError
from spring_rag.files import parse_json, replace_files
from spring_rag.persistence.folder import TENSOR_FILE

_RUN_FILE = "run.json"
_STATE_FILE = "trainer_state.json"
_LOCK_FILE = ".lock"
_BEFORE = "before"
"""Folder for the checkpoints of the previous run, until this one is finished."""


@dataclass(frozen=True)
class CheckpointFolder:
    """A run's folder of checkpoints.

    Args:
        folder: where the `checkpoint-N` folders are.
        description: everything that decides the run's outcome, as JSON: recipe, data, backbone.
    """

    folder: Path
    description: Mapping[str, Any]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the folder inside the block.

        Raises:
            TrainingError: another run is at work there.
        """
        self._refuse_links()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / _LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            msg = (
                f"another run is training in {self.folder.parent}; wait for its end, or choose another folder"
            )
            raise TrainingError(msg) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, *, resume: bool) -> Path | None:
        """Prepare the folder for the run. Only one process may call this, before the others read the folder.

        If this very run is finished already, it is left as it is. The checkpoints of another finished run are put aside.

        Returns:
            The checkpoint to go on from; None to begin at the beginning.

        Raises:
            TrainingError: the folder belongs to another run, or to an unfinished run and `resume` is False.
        """
        recorded = self._recorded()
        whole = [checkpoint for checkpoint in self._checkpoints() if _state(checkpoint)]
        last = whole[-1] if whole else None
        if resume:
            if last is not None:
                self._refuse_another(recorded)
            if (going_on := self.last_checkpoint()) is not None or self.is_finished():
                return going_on
        elif last is not None and not recorded.get("finished"):
            msg = (
                f"{self.folder.parent} holds a run that stopped at step {_step(last)}; go on with it (--resume), "
                "choose another folder, or delete this one"
            )
            raise TrainingError(msg)
        elif self.is_finished() and recorded.get("run") == self._as_json():
            return None
        self._put_aside(whole)
        self._write(finished=False)
        return None

    def finish(self) -> None:
        """Mark the run as finished, so that the next one may start again in this folder."""
        self._write(finished=True)
        shutil.rmtree(self.folder / _BEFORE, ignore_errors=True)

    def is_finished(self) -> bool:
        """Return whether the run's record says that it is finished, and its artifact is there."""
        return bool(self._recorded().get("finished")) and (self.folder.parent / TENSOR_FILE).is_file()

    def last_checkpoint(self) -> Path | None:
        """Return the latest checkpoint that was written to its end and has steps ahead; None if there is none.

        From a checkpoint without steps ahead, `Trainer` would take one too many. So a run that was killed between its last
        checkpoint and its artifact repeats the steps between its last two checkpoints.
        """
        return next((path for path in reversed(self._checkpoints()) if _has_steps_ahead(_state(path))), None)

    def _refuse_links(self) -> None:
        """Refuse links: what is deleted or written behind one may belong to anyone.

        Raises:
            TrainingError: the folder of checkpoints or one in it is a link.
        """
        for path in (self.folder, self.folder / _BEFORE, *self._checkpoints()):
            if path.is_symlink():
                msg = f"{path} is a link, and training deletes old checkpoints; remove the link, or choose another folder"
                raise TrainingError(msg)

    def _put_aside(self, whole: Sequence[Path]) -> None:
        aside = self.folder / _BEFORE
        if whole and aside.exists():
            shutil.rmtree(aside)
        for checkpoint in self._checkpoints():
            if checkpoint in whole:
                aside.mkdir(exist_ok=True)
                checkpoint.rename(aside / checkpoint.name)
            else:
                shutil.rmtree(checkpoint)

    def _as_json(self) -> Any:
        """Return the description as it is read back from JSON, with lists in place of tuples."""
        return json.loads(json.dumps(self.description))

    def _checkpoints(self) -> list[Path]:
        found = [p for p in self.folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=_step)

    def _recorded(self) -> dict[str, Any]:
        return _recorded(self.folder)

    def _write(self, *, finished: bool) -> None:
        content = {"finished": finished, "run": self.description}
        replace_files(self.folder, {_RUN_FILE: json.dumps(content, indent=2, ensure_ascii=False).encode()})

    def _refuse_another(self, recorded: Mapping[str, Any]) -> None:
        before = recorded.get("run")
        if not isinstance(before, Mapping):
            msg = f"{self.folder} holds checkpoints, but {_RUN_FILE}, which says what run they belong to, is missing or damaged; start again in another folder"
            raise TrainingError(msg)
        differences = list(_differences(before, self._as_json()))
        if differences:
            msg = (
                f"the run in {self.folder.parent} can't go on with other settings than it began with: {'; '.join(differences)}. "
                "Give the settings it began with along with --resume, or start again in another folder"
            )
            raise TrainingError(msg)


def recorded_run(folder: Path) -> dict[str, Any]:
    """Return the description of the run whose checkpoints lie in a folder; empty if there is none."""
    run = _recorded(folder).get("run")
    return run if isinstance(run, dict) else {}


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / _RUN_FILE
    if not path.is_file():
        return {}
    try:
        recorded = parse_json(path.read_bytes())
    except ValueError:
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {_short(old)} and is now {_short(new)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _state(checkpoint: Path) -> dict[str, Any]:
    """Read the state that `Trainer` writes last; empty if a process was killed while saving and left none, or half of it."""
    try:
        state = parse_json((checkpoint / _STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _has_steps_ahead(state: Mapping[str, Any]) -> bool:
    return bool(state) and state["global_step"] < state["max_steps"]
