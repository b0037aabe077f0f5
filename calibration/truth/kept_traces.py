"""Predictions by tracing that are kept in a file, so that what was traced before is not traced again.

An answer belongs to a question (model, step and card) and to a tracer: the libraries that were traced and the code that
did it. With another tracer it is only what was answered then.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Set
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

from calibration.trace.harness import Harness, harness_of
from calibration.truth.prediction import Prediction, Question, Refusal
from profiles.errors import DataError

PROJECT = Path(__file__).parents[2]
PACKAGES = ("calibration", "trainer", "planner", "profiles")
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
"""What a traced step consists of."""

TRACES = "calibration.truth.traced_prediction"

PROVENANCE = {
    "aliases",
    "gated",
    "notes",
    "num_parameters_published",
    "num_parameters_source",
    "sources",
    "unconfirmed",
}
"""Fields of a model that say where the others are from."""


def fingerprint(question: Question, harness: Harness) -> str:
    """A name of all that an answer depends on besides the tracer."""
    model, step, gpu = question
    facts = (
        model.model_dump(mode="json", exclude=PROVENANCE),
        asdict(step),
        (gpu.cublas_workspace_bytes, gpu.context_bytes, gpu.memory_bytes),
        # Only where threads race is there more to an answer.
        harness.model_dump(exclude={"source"} if harness.races else {"source", "races"}),
    )
    return _digest(json.dumps(facts, sort_keys=True))


@cache
def libraries() -> dict[str, str]:
    """The versions of the libraries that are traced."""
    return {name: metadata.version(name) for name in LIBRARIES}


@cache
def tracer() -> str:
    """A name of the libraries and of all code that takes part in a trace; comments do not count."""
    code = (ast.dump(ast.parse(path.read_text("utf-8"))) for path in sorted(_sources(TRACES)))
    return _digest(json.dumps(libraries()), *code)


class KeptTraces:
    """The answers of one file by the ids of measured runs; each change is written at once."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if the file is there and is not such a file."""
        self._path = path
        try:
            self._document = json.loads(path.read_text("utf-8")) if path.exists() else {"tracers": {}, "answers": {}}
            self._answers: dict[str, dict[str, object]] = self._document["answers"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read as kept traces: {error}") from error

    def find(self, run_id: str, question: Question, by: str | None = None) -> Prediction | Refusal | None:
        """The answer to this question about a run, of the tracer `by` or of any; None if it is not kept."""
        kept = self._answers.get(run_id)
        if (
            kept is None
            or kept["question"] != fingerprint(question, harness_of(run_id))
            or by not in (None, kept["tracer"])
        ):
            return None
        if "refused" in kept:
            return str(kept["refused"])
        figures = {name: kept.get(name) for name in Prediction.__slots__}
        raced = figures.pop("reserved_range")
        return Prediction(**figures, reserved_range=raced and tuple(raced))  # type: ignore[arg-type]

    def tracers(self) -> dict[str, dict[str, str]]:
        """The libraries of each tracer that an answer is from."""
        by = {str(answer["tracer"]) for answer in self._answers.values()}
        return {name: versions for name, versions in self._document["tracers"].items() if name in by}

    def keep(self, run_id: str, question: Question, answer: Prediction | Refusal) -> None:
        """Write an answer of this tracer to the file."""
        found = {"refused": answer} if isinstance(answer, str) else asdict(answer)
        self._answers[run_id] = {"question": fingerprint(question, harness_of(run_id)), "tracer": tracer(), **found}
        self._document["tracers"][tracer()] = libraries()
        self._write()

    def forget_all_but(self, run_ids: Set[str]) -> None:
        """Drop answers about runs that are no longer there."""
        for run_id in self._answers.keys() - run_ids:
            del self._answers[run_id]
        self._write()

    def _write(self) -> None:
        lines = ",\n".join(f"{json.dumps(id_)}: {json.dumps(self._answers[id_])}" for id_ in sorted(self._answers))
        written = self._path.with_suffix(".part")
        written.write_text(f'{{"tracers": {json.dumps(self.tracers())},\n"answers": {{\n{lines}\n}}}}\n', "utf-8")
        written.replace(self._path)


def _sources(module: str, seen: set[Path] | None = None) -> set[Path]:
    """The files of `module` and of all of the project that it imports."""
    seen = set() if seen is None else seen
    path = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
    if path.exists() and path not in seen:
        seen.add(path)
        for imported in _imports(path):
            _sources(imported, seen)
    return seen


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.partition(".")[0] in PACKAGES)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
