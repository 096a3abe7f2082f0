"""Job of a study: an ordinary ``fit`` run in a separate folder, and the files that record its progress."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError

STARTED = "job.json"
FINISHED = "finished.json"
LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """Run of ``python -m a2d_lightning fit``.

    ``run_dir/job.json`` holds the arguments and is written before each start. ``run_dir/finished.json`` is written
    after exit status 0. ``run_dir/log.txt`` collects the output of all starts.
    """

    name: str
    """Name, unique within a study, shown in progress lines."""
    arguments: tuple[str, ...]
    """Arguments of ``fit`` without ``--run_dir`` and ``--ckpt_path``."""
    run_dir: Path

    def command_line(self) -> list[str]:
        """Return arguments of ``python -m a2d_lightning`` that start the run or resume its newest checkpoint."""
        return ["fit", *self.arguments, "--run_dir", str(self.run_dir), "--ckpt_path", "auto"]

    @property
    def finished(self) -> bool:
        """Return whether the run has ended with exit status 0."""
        return (self.run_dir / FINISHED).is_file()

    def check_arguments(self) -> None:
        """Compare the arguments with those of an earlier start.

        Raises:
            SettingError: If the arguments differ, or the folder holds a run that is not part of a study.
        """
        for name in (FINISHED, STARTED):
            path = self.run_dir / name
            if path.is_file():
                earlier = _arguments(path)
                if earlier != self.arguments:
                    raise SettingError(
                        f"run_dir: {str(self.run_dir)!r} was started with other arguments "
                        f"({_difference(earlier, self.arguments)}); restore them, or choose another output folder."
                    )
                return
        if any((self.run_dir / "checkpoints").glob("*.ckpt")):
            raise SettingError(
                f"run_dir: {str(self.run_dir)!r} contains a run that this study did not start; choose another output "
                "folder."
            )

    def mark_started(self) -> None:
        """Write ``job.json``."""
        self._write(STARTED, {"arguments": list(self.arguments)})

    def mark_finished(self, seconds: float) -> None:
        """Write ``finished.json``.

        Args:
            seconds: Wall-clock seconds of the last start.
        """
        content = {"exit_status": 0, "seconds": round(seconds, 1), "arguments": list(self.arguments)}
        self._write(FINISHED, content)

    def last_log_line(self) -> str:
        """Return the last non-empty line of the log, which for a failed run is the error."""
        try:
            lines = (self.run_dir / LOG).read_text(errors="replace").splitlines()
        except OSError:
            return "no output"
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.run_dir / name, (json.dumps(content, indent=1) + "\n").encode())


Ended = tuple[Job, int, float]
"""Job, exit status (negative: number of the signal that ended the process), seconds since the last start."""


def _arguments(path: Path) -> tuple[str, ...]:
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"run_dir: {str(path)!r} is damaged; delete its folder to train that job again.") from error


def _difference(earlier: Sequence[str], now: Sequence[str]) -> str:
    """Describe the difference between two argument lists by the first three removed and added options."""
    removed, added = (
        [word for word in _words(a) if word not in _words(b)] for a, b in ((earlier, now), (now, earlier))
    )
    if not removed and not added:
        return "the same ones in another order"
    return f"before: {' '.join(removed[:3]) or 'nothing'}; now: {' '.join(added[:3]) or 'nothing'}"


def _words(arguments: Sequence[str]) -> list[str]:
    """Join each value with the preceding option."""
    return [
        f"{before} {argument}" if before.startswith("--") and not argument.startswith("--") else argument
        for before, argument in zip(("", *arguments), arguments, strict=False)
    ]
