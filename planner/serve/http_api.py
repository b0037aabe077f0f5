"""The verbs as an HTTP API: POST /api/VERB with a JSON object, described by /openapi.json."""

from collections.abc import Callable
from typing import cast

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic_core import ErrorDetails

from planner.asking.question import Access
from planner.serve.served_verbs import Document, ServedVerb, question_error, served_verbs
from profiles.errors import FituneError, InputError

BAD_INPUT, FAILED = 422, 503


class ErrorWords(BaseModel):
    """What is wrong, and the way out."""

    message: str
    hint: str | None
    exit_code: int = Field(description="What the command line would return.")


class ErrorDocument(BaseModel):
    """The answer where there is none."""

    error: ErrorWords


def api_router(access: Access) -> APIRouter:
    """One POST route for each verb."""
    router = APIRouter(prefix="/api", tags=["verbs"])
    responses = {code: {"model": ErrorDocument} for code in (BAD_INPUT, FAILED)}
    for verb in served_verbs().values():
        summary, _, description = verb.about.partition("\n\n")
        router.add_api_route(
            f"/{verb.name}",
            _endpoint(verb, access),
            methods=["POST"],
            name=verb.name,
            summary=" ".join(summary.split()),
            description=description,
            responses=responses,  # type: ignore[arg-type]
        )
    return router


def tell_errors(app: FastAPI) -> None:
    """Let `app` answer errors of its users as `ErrorDocument`."""

    @app.exception_handler(FituneError)
    def of_fitune(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, FituneError)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    def of_schema(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        details = cast(ErrorDetails, error.errors()[0])
        # The place begins with the word body.
        details["loc"] = details["loc"][1:]
        return error_response(question_error(details, request.url.path.rpartition("/")[2]))


def error_response(error: FituneError) -> JSONResponse:
    """`error` in words, with a status."""
    words = ErrorWords(message=error.message, hint=error.hint, exit_code=error.exit_code)
    status = BAD_INPUT if isinstance(error, InputError) else FAILED
    return JSONResponse(ErrorDocument(error=words).model_dump(), status)


def _endpoint(verb: ServedVerb, access: Access) -> Callable[[BaseModel], Document]:
    def ask(question: BaseModel) -> Document:
        return verb.ask(question, access)

    ask.__annotations__["question"] = verb.question
    return ask
