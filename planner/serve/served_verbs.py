"""The verbs as a server offers them: a name, a question with its schema, and an answer as one JSON object.

Each is derived from a function of `planner.verbs.answers` or `planner.verbs.facts`; the HTTP API and the MCP server are
two ways to this one table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, getdoc, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from planner.asking.question import Access
from planner.config.run_config import RunConfig
from planner.config.run_file import VERSION, config_error, run_file_text
from planner.report.plan_document import plan_document, prediction_document
from planner.report.run_file_header import run_file_header
from planner.search.planning import Plan
from planner.verbs import answers, facts
from profiles.errors import ConfigError

Document = dict[str, Any]

NOT_SERVED = frozenset({"access", "data", "exact"})
"""Parameters that reach into the machine of the server."""

SERVED_TYPES: dict[str, object] = {
    "subject": Annotated[str | RunConfig, Field(description="A model as in `can`, or what stands in a run file.")],
}
"""Where the function takes more than a request can carry."""


@dataclass(frozen=True, slots=True)
class ServedVerb:
    """A verb with its question, and what it does in a sentence."""

    name: str
    about: str
    question: type[BaseModel]
    _function: Callable[..., Any]
    _document: Callable[[Any], Document]

    def ask(self, question: BaseModel, access: Access) -> Document:
        """The answer to `question`. Raises as the function of the verb does."""
        values = {name: getattr(question, name) for name in question.model_fields_set}
        if "access" in signature(self._function).parameters:
            values["access"] = access
        return self._document(self._function(**values))

    def parse(self, values: Mapping[str, Any]) -> BaseModel:
        """The question in `values`. Raises ConfigError for what is not in its schema."""
        try:
            return self.question.model_validate(values)
        except ValidationError as error:
            raise question_error(error.errors()[0], self.name) from error


def question_error(details: ErrorDetails, verb: str) -> ConfigError:
    """One sentence for one thing that is wrong with a question to `verb`."""
    if details["type"] == "extra_forbidden":
        name = ".".join(map(str, details["loc"]))
        return ConfigError(f"{verb} has no {name}", hint="its schema lists what it takes")
    return config_error(details, Path(verb))


def served_verbs() -> dict[str, ServedVerb]:
    """Every verb that is served, by name."""
    found = (
        _verb(answers.can, plan_document),
        _verb(answers.plan, _with_run_file),
        _verb(answers.estimate, prediction_document),
        _verb(facts.gpus, dict),
        _verb(facts.models, dict),
        _verb(facts.recipes, dict),
        _verb(facts.methods, dict),
        _verb(schema, dict),
    )
    return {verb.name: verb for verb in found}


def schema() -> Document:
    """The JSON schema of a run file."""
    return {"version": VERSION, "schema": RunConfig.model_json_schema()}


def _with_run_file(plan: Plan) -> Document:
    config = plan.config
    text = run_file_text(config, run_file_header(plan, config)) if config else None
    return plan_document(plan) | {"run_file": text}


def _verb(function: Callable[..., Any], document: Callable[[Any], Document]) -> ServedVerb:
    name = function.__name__
    paragraphs = (getdoc(function) or "").partition("\n\nExamples:")[0].strip().split("\n\n")
    about = [text for text in paragraphs if not any(f"`{parameter}`" in text for parameter in NOT_SERVED)]
    return ServedVerb(name, "\n\n".join(about), _question(function), function, document)


def _question(function: Callable[..., Any]) -> type[BaseModel]:
    """The parameters of `function` that a request may give."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (SERVED_TYPES.get(name, hints[name]), ... if given.default is Parameter.empty else given.default)
        for name, given in signature(function).parameters.items()
        if name not in NOT_SERVED
    }
    title = f"{function.__name__.title()}Question"
    return create_model(title, __config__=ConfigDict(extra="forbid", frozen=True), **fields)
