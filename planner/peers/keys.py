"""The keys of one file on their way into a run: each is read, known to be harmless, or listed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from profiles.errors import ConfigError
from profiles.peer_keys import Effect, NoEffect, PeerKeys, Unmodeled, is_off

Status = Literal["understood", "no effect", "off", "not modeled", "unknown"]
"""How a key is accounted for. off: it would matter, but is empty or has the value that the peer takes anyway; not
modeled: it matters, and the estimate does not know how; unknown: the peer has no such key."""


@dataclass(frozen=True, slots=True)
class KeyAccount:
    """One key of a file, and why it is where it is."""

    key: str
    value: Any
    status: Status
    why: str = ""
    effect: Effect | None = None


class Keys:
    """The values of a file as its peer sees them: with the peer's defaults for what is not given.

    In YAML a key without a value is as good as absent, and so it is for all peers.
    """

    def __init__(self, values: Mapping[str, Any], peer: PeerKeys, path: Path) -> None:
        self.remarks: list[str] = []
        self._values, self._peer, self._path = values, peer, path
        self._told: list[KeyAccount] = []

    def __call__(self, key: str) -> Any:  # noqa: ANN401  # whatever the file holds
        """The value of `key`, or of an older name of it, or the peer's default."""
        return self._values[name] if (name := self.given(key)) else self._peer.default(key)

    def given(self, key: str) -> str | None:
        """The name under which the file gives `key` a value; None if it does not."""
        names = (key, *self._peer.older_names(key))
        return next((name for name in names if self._values.get(name) is not None), None)

    def refuse(self, key: str, rule: str, hint: str | None = None) -> ConfigError:
        """The error for the value of `key`, which breaks a `rule`."""
        return ConfigError(f"{self._path}: {key} is {self(key)!r}, but {rule}", hint=hint)

    def choice(self, key: str, known: Mapping[Any, Any]) -> Any:  # noqa: ANN401  # a value of `known`
        """What `known` has for the value of `key`. Raises ConfigError for one that is not among them."""
        value = self(key)
        value = value.lower() if isinstance(value, str) else value
        if value not in known:
            words = ", ".join(str(word) for word in known if word is not None)
            raise self.refuse(key, f"what a step takes is only known for {words}")
        return known[value]

    def leave_out(self, key: str, why: str, effect: Effect = "either") -> None:
        """List a value of an understood key that the estimate does not know."""
        self._told.append(KeyAccount(key, self(key), "not modeled", why, effect))

    def take_in(self, key: str) -> None:
        """Count a key that is otherwise not modeled as understood, where its value is."""
        self._told.append(KeyAccount(key, self(key), "understood"))

    def accounts(self) -> tuple[KeyAccount, ...]:
        """Each key of the file, in its order."""
        listed = {account.key: account for account in self._told}
        return tuple(listed.get(key) or self._account(key, value) for key, value in self._values.items())

    def _account(self, key: str, value: object) -> KeyAccount:
        reason = self._peer.reason(key)
        match reason:
            case "understood":
                return KeyAccount(key, value, "understood")
            case NoEffect():
                return KeyAccount(key, value, "no effect", reason.why)
            case Unmodeled() if is_off(value, self._peer.default(key)):
                return KeyAccount(key, value, "off", reason.what)
            case Unmodeled():
                return KeyAccount(key, value, "not modeled", reason.what, reason.effect)
            case _:
                near = self._peer.nearest(key)
                question = f"; did you mean {near}?" if near else ""
                return KeyAccount(key, value, "unknown", f"{self._peer.format} has no such key{question}")
