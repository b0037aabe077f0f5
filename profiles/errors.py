"""Every error that fitune raises on purpose, in one tree.

FituneError                     a sentence for the user, and a way out; never a traceback
|- InputError                   what the user wrote cannot be used               exit code 2
|  |- UnknownGpuError           no such card in profiles/gpus
|  |- UnknownModelError         no such model, folder or Hub id
|  |- UnsupportedError          a known thing that this tool does not describe (an architecture, a combination)
|  |- ConfigError               a run file or a knob that breaks a rule
|  `- DataError                 a data file that cannot be trained on
`- RunError                     good input, but the work failed                  exit code 1
   |- EnvironmentFault          driver, library or hardware that is missing or does not match
   |- ProcessLost               another process of the run is gone, so this one cannot go on
   `- OutOfMemory              the run met the end of the card's memory
"""

from typing import Literal

Moment = Literal["loading", "probing", "training", "evaluation", "saving"]
"""What a run was doing when memory ended; probing is the trial of the longest step before training."""


class FituneError(Exception):
    """A failure told in one sentence, with an optional way out.

    `exit_code` is what the command line returns.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(FituneError, ValueError):
    """What the user wrote cannot be used."""

    exit_code = 2


class UnknownGpuError(InputError):
    """No such card among the profiles."""


class UnknownModelError(InputError):
    """No such model in the catalogue, on disk or on the Hub."""


class UnsupportedError(InputError):
    """A thing that exists but that fitune does not describe, so it refuses to guess."""


class ConfigError(InputError):
    """A run file or a knob that breaks a rule."""


class DataError(InputError):
    """A data file that cannot be trained on."""


class RunError(FituneError):
    """The input was good, the work failed."""


class EnvironmentFault(RunError):  # noqa: N818
    """A driver, library or card that is missing or does not match the others."""


class ProcessLost(RunError):  # noqa: N818
    """Another process of the run is gone, so this one cannot go on after `step` steps."""

    def __init__(self, message: str, hint: str | None = None, *, step: int = 0) -> None:
        super().__init__(message, hint)
        self.step = step


class OutOfMemory(RunError):  # noqa: N818
    """The run met the end of the card's memory, after `step` steps."""

    def __init__(self, message: str, hint: str | None = None, *, moment: Moment = "training", step: int = 0) -> None:
        super().__init__(message, hint)
        self.moment = moment
        self.step = step
