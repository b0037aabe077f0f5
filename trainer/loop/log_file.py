"""The run's log: a line of JSON for all figures that the display shows, and for each evaluation."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from planner.records.run_record import LOG_FILE as LOG_FILE
from trainer.loop.progress import Display, Snapshot


class LoggedDisplay:
    """Shows what another display shows, and appends it to the log file of the run folder."""

    def __init__(self, shown: Display, output_dir: Path) -> None:
        self._shown = shown
        self._path = output_dir / LOG_FILE

    def step(self, snapshot: Snapshot) -> None:
        """Show the step; the file has logged figures only."""
        self._shown.step(snapshot)

    def log(self, snapshot: Snapshot) -> None:
        """Show the figures and append them, with the time in UTC."""
        self._shown.log(snapshot)
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(snapshot)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Show no more."""
        self._shown.close()
