"""The question of the page: the fields of its form, which are also the query of its link."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError

from planner.asking.question import Access
from planner.asking.wishes import NUMBERS, Wishes, checked_number
from planner.config.run_config import Objective
from planner.config.settings import knobs_in, settings_of
from planner.search.planning import Plan, make_plan
from planner.search.request import RequestedMethod
from planner.verbs.answers import ANY, answer, planned_request
from profiles.errors import ConfigError

EXAMPLE = {"model": "llama3.1-8b", "gpu": "RTX 4090"}
"""What is asked before anybody asks."""

METHODS: tuple[RequestedMethod, ...] = get_args(RequestedMethod)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
FIELDS = ("model", "gpu", "method", "objective", *NUMBERS, "recipe", "set")


Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, slots=True)
class PageQuestion:
    """The fields as they were typed; an empty one is open. `settings` are KNOB=VALUE."""

    model: str = ""
    gpu: str = ""
    method: str = ""
    objective: str = ""
    num_gpus: str = ""
    num_nodes: str = ""
    max_length: str = ""
    batch_size: str = ""
    lora_r: str = ""
    rows: str = ""
    recipe: str = ""
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, query: Iterable[tuple[str, str]]) -> "PageQuestion":
        """The question of a link. Raises ConfigError for a field that there is not."""
        values: dict[str, str] = {}
        settings: list[str] = []
        for name, value in query:
            if name not in FIELDS:
                raise ConfigError(f"the link has a field {name}, but the page has none", hint=", ".join(FIELDS))
            if name == "set":
                settings += [line.strip() for line in value.splitlines() if line.strip()]
            else:
                values[name] = value.strip()
        return cls(**values, settings=tuple(settings))

    @property
    def fields(self) -> dict[str, str]:
        """The fields that are not empty, apart from the settings."""
        return {name: value for name in FIELDS[:-1] if (value := getattr(self, name))}

    @property
    def query(self) -> str:
        """The question as the query of a link."""
        return urlencode([*self.fields.items(), *(("set", setting) for setting in self.settings)])

    def with_fields(self, **fields: str) -> "PageQuestion":
        """The same with other `fields`."""
        return replace(self, **fields)  # type: ignore[arg-type]

    def with_settings(self, knobs: Mapping[str, object]) -> "PageQuestion":
        """The same with `knobs` pinned, in place of earlier settings of the same ones."""
        new = settings_of(knobs)
        names = {setting.partition("=")[0] for setting in new}
        kept = [setting for setting in self.settings if setting.partition("=")[0] not in names]
        return replace(self, settings=(*kept, *new))

    def ask(self, access: Access, *, only_best: bool = False) -> Plan:
        """The answer; with `only_best` much sooner, without all that could be traded. Raises InputError."""
        wishes = self._wishes()
        if self.recipe:
            return make_plan(planned_request(self.model or None, self.gpu or None, wishes, access), only_best=only_best)
        if not self.model:
            raise ConfigError("no model is named", hint="type one, such as 7b or mistralai/Mistral-7B-v0.1")
        return answer(self.model, self.gpu or ANY, wishes, access, only_best=only_best)

    def _wishes(self) -> Wishes:
        numbers: dict[str, Any] = {name: _number(name, getattr(self, name)) for name in NUMBERS}
        return Wishes(
            method=_choice("method", self.method or "auto", METHODS),
            objective=_choice("objective", self.objective, OBJECTIVES) if self.objective else None,
            knobs=knobs_in(self.settings),
            recipe=self.recipe or None,
            **numbers,
        )


def _number(name: str, text: str) -> int | None:
    """The number in a field, within the limits that it has everywhere."""
    if not text:
        return None
    hint = "leave it empty for any"
    try:
        number = TypeAdapter(int).validate_python(text.replace(",", ""))
    except ValidationError:
        raise ConfigError(f"{name} is {text!r}, which is no whole number", hint=hint) from None
    return checked_number(NUMBERS[name], number, name, hint)


def _choice(name: str, value: str, choices: tuple[Choice, ...]) -> Choice:
    found = next((choice for choice in choices if choice == value), None)
    if found is None:
        raise ConfigError(f"{name} is {value!r}, but it must be one of {', '.join(choices)}")
    return found
