"""The server: the page at /, the verbs at /api and /mcp. Nothing of it is on the way of a command line's answer."""

import gc
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from starlette.middleware.trustedhost import TrustedHostMiddleware

from planner.asking.question import Access, own_card
from planner.records.run_store import store_path
from planner.search.planning import Plan
from planner.search.ranking import Losers
from planner.serve.form_choices import FormChoices, form_choices
from planner.serve.http_api import api_router, error_response, tell_errors
from planner.serve.mcp_server import mcp_server
from planner.serve.page_answer import page_answer
from planner.serve.page_cards import card_lines
from planner.serve.page_question import EXAMPLE, PageQuestion
from planner.serve.page_runs import runs_view
from planner.serve.served_verbs import served_verbs
from planner.version import version
from profiles.errors import FituneError
from profiles.model_catalog import ResolvedModel, resolve_model

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Part = Literal["options", "cards"]
"""What takes longer than the answer, and is asked for when the answer is there."""

PARTS: tuple[Part, ...] = get_args(Part)

REMEMBERED = 256
"""Answers that are kept; each is small without the configurations that lost."""

COLLECT_AFTER = 50_000
"""New objects between two looks of the garbage collector; an answer makes about as many, and leaves next to none."""

AT_ONCE = 8
"""Answers that are worked out at the same time. Python runs one of them at a time; more would all be late together."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server may do: which model folders and run folder it may read, whether it may ask the Hub.

    The runs of this machine are shown if `runs` is a folder or `with_store`.
    """

    host: str = "127.0.0.1"
    folders: tuple[Path, ...] = ()
    hub: bool = True
    runs: Path | None = None
    with_store: bool = False

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in LOOPBACK

    @property
    def shows_runs(self) -> bool:
        """Whether there are runs to show."""
        return self.runs is not None or self.with_store

    def access(self) -> Access:
        """What an answer may reach."""
        return Access(resolve=self._resolve, files=False, tracing=None)

    def _resolve(self, name: str) -> ResolvedModel:
        given = Path(name).expanduser() in self.folders
        return resolve_model(name, folders=given, hub=self.hub)


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """The ASGI application."""
    settings = settings or ServerSettings()
    access = settings.access()
    tools = mcp_server(access)
    # The page has its own check of the host, for all that it serves.
    tools_app = tools.streamable_http_app(json_response=True, stateless_http=True, host=settings.host)

    page = Page(settings, access)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        page.warm()
        to_thread.current_default_thread_limiter().total_tokens = AT_ONCE
        async with tools.session_manager.run():
            yield

    app = FastAPI(
        title="fitune",
        version=version() or "",
        summary="Can I fine-tune this model on my GPU?",
        lifespan=lifespan,
        # Their pages load scripts from elsewhere; /reference is written here.
        docs_url=None,
        redoc_url=None,
    )
    if settings.is_local:
        # A page elsewhere that gives this machine a name of its own must not read answers.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "testserver"])
    app.middleware("http")(_with_headers)
    tell_errors(app)
    app.include_router(api_router(access))
    app.mount("/static", StaticFiles(packages=[("planner.serve", "static")]))
    page.add_to(app)
    app.router.routes.extend(tools_app.routes)
    return app


async def _with_headers(request: Request, call_next: Callable[[Request], Any]) -> Response:
    response: Response = await call_next(request)
    response.headers.update(HEADERS)
    return response


class Page:
    """The routes of the page; they share the templates and the answers that are kept."""

    def __init__(self, settings: ServerSettings, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._templates = Environment(
            loader=PackageLoader("planner.serve"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters["coded"] = _coded
        self._choices: FormChoices = form_choices(has_card=own_card() is not None, folders=settings.folders)
        self._kept_plan = lru_cache(REMEMBERED)(self._ask)
        self._kept_answer = lru_cache(REMEMBERED)(self._write_answer)
        self._kept_part = lru_cache(REMEMBERED)(self._write_part)

    def add_to(self, app: FastAPI) -> None:
        """Answer at the paths of the page."""
        pages: dict[str, Callable[..., Response]] = {
            "/": self.index,
            "/answer": self.answer,
            **{f"/{part}": partial(self.part, part) for part in PARTS},
            **{f"/{part}/list": partial(self.part_list, part) for part in PARTS},
            "/reference": self.reference,
        }
        if self._settings.shows_runs:
            pages |= {"/runs": self.runs, "/runs/list": self.runs_list}
        for path, page in pages.items():
            app.add_api_route(path, page, response_class=HTMLResponse, include_in_schema=False)
        app.add_api_route("/run.yaml", self.run_file, include_in_schema=False)
        app.add_api_route("/health", self.health, include_in_schema=False)

    def warm(self) -> None:
        """Answer once, so that all facts are read, and let the garbage collector look no more at what stays."""
        self._answer(PageQuestion.of(EXAMPLE.items()), None)
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)

    def index(self, request: Request) -> HTMLResponse:
        """The whole page, with the answer to its link."""
        query = request.query_params.multi_items() or EXAMPLE.items()
        question = PageQuestion()
        with _told() as problem:
            question = PageQuestion.of(query)
            answer = self._answer(question, None)
        shown = self._error(problem[0]) if problem else answer
        return HTMLResponse(self._html("page.html", question=question, choices=self._choices, shown=shown))

    def answer(self, request: Request) -> HTMLResponse:
        """The answer alone; `before` is the query of the question before."""
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "before"]
        with _told() as problem:
            return HTMLResponse(self._answer(PageQuestion.of(query), request.query_params.get("before")))
        return HTMLResponse(self._error(problem[0]))

    def part(self, part: Part, request: Request) -> HTMLResponse:
        """What is asked after the answer, as a page of its own."""
        return HTMLResponse(self._html("part_page.html", shown=self._part(part, request)))

    def part_list(self, part: Part, request: Request) -> HTMLResponse:
        """The same without the page around it."""
        return HTMLResponse(self._part(part, request))

    def run_file(self, request: Request) -> Response:
        """The run file, to be kept."""
        try:
            question = PageQuestion.of(request.query_params.multi_items())
            text = page_answer(question, self._plan(question), None).run_file
        except FituneError as error:
            return error_response(error)
        if text is None:
            return PlainTextResponse("nothing fits, so there is no run file\n", 404)
        named = {"Content-Disposition": 'attachment; filename="run.yaml"'}
        return Response(text, media_type="application/yaml", headers=named)

    def runs(self) -> HTMLResponse:
        """The runs of this machine."""
        return HTMLResponse(self._html("runs.html", runs=self._runs()))

    def runs_list(self) -> HTMLResponse:
        """The same without the page around it, to be shown again and again."""
        return HTMLResponse(self._html("runs_list.html", runs=self._runs()))

    def health(self) -> PlainTextResponse:
        """A sign of life."""
        return PlainTextResponse("ok")

    def reference(self) -> HTMLResponse:
        """How to ask from programs."""
        verbs = [(verb, verb.question.model_json_schema()) for verb in served_verbs().values()]
        return HTMLResponse(self._html("reference.html", verbs=verbs))

    def _runs(self) -> object:
        return runs_view(self._settings.runs, self._settings.with_store)

    def _answer(self, question: PageQuestion, before: str | None) -> str:
        """The answer as HTML, beside what it was before."""
        stamp = self._stamp(question)
        write = self._write_answer if stamp is None else self._kept_answer
        return write(question, before, stamp)

    def _write_answer(self, question: PageQuestion, before: str | None, stamp: int | None) -> str:
        earlier = None
        if before is not None:
            with _told():
                earlier = self._plan(PageQuestion.of(parse_qsl(before)))
        return self._html("answer.html", answer=page_answer(question, self._plan(question), earlier))

    def _part(self, part: Part, request: Request) -> str:
        with _told() as problem:
            question = PageQuestion.of(request.query_params.multi_items())
            stamp = self._stamp(question)
            write = self._write_part if stamp is None else self._kept_part
            return write(part, question, stamp)
        return self._error(problem[0])

    def _write_part(self, part: Part, question: PageQuestion, stamp: int | None) -> str:
        if part == "cards":
            return self._html("cards.html", lines=card_lines(question, self._plan(question)))
        return self._html("options.html", answer=page_answer(question, self._ask(question, only_best=False), None))

    def _error(self, error: FituneError) -> str:
        return self._html("error.html", error=error)

    def _plan(self, question: PageQuestion) -> Plan:
        stamp = self._stamp(question)
        return self._ask(question) if stamp is None else self._kept_plan(question, stamp)

    def _stamp(self, question: PageQuestion) -> int | None:
        """For how long an answer is kept: until a run is recorded. None: what is free on this machine is asked anew."""
        if question.gpu in ("auto", "cpu"):
            return None
        store = store_path()
        return store.stat().st_mtime_ns if store and store.exists() else 0

    def _ask(self, question: PageQuestion, stamp: int | None = None, *, only_best: bool = True) -> Plan:
        return replace(question.ask(self._access, only_best=only_best), losers=Losers())

    def _html(self, template: str, **context: object) -> str:
        shown = {"shows_runs": self._settings.shows_runs, "version": version()}
        return self._templates.get_template(template).render(shown | context)


def _coded(text: str) -> Markup:
    """`text` with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # it is escaped


@contextmanager
def _told() -> Iterator[list[FituneError]]:
    """Keeps the error that ends the block, for it to be told on the page."""
    problem: list[FituneError] = []
    try:
        yield problem
    except FituneError as error:
        problem.append(error)
