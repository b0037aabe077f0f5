"""Pages and pictures that are made when the documentation is built: from facts, from the code, from the repository."""

import re
from functools import cache
from inspect import signature
from pathlib import Path

from drawings import drawings, errors_picture
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.testing import CliRunner

from planner.asking.wishes import words
from planner.cli import VERBS, application
from planner.config.run_config import RunConfig
from planner.config.run_file import SECTIONS
from planner.report.markdown import markdown_table
from planner.units import GIB, format_count
from planner.verbs import answers
from planner.verbs.facts import find_gpus, find_models, find_recipes, num_parameters

ROOT = Path(__file__).parents[1]

FROM_REPOSITORY = {
    "readme.md": "README.md",
    "errors.md": "calibration/ERRORS.md",
    "constants.md": "calibration/ACCURACY.md",
    "methods.md": "trainer/METHODS.md",
    "faults.md": "trainer/FAULTS.md",
    "traceable.md": "calibration/TRACEABLE.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)]+)\)")
EXIT_CODE = re.compile(r"^```console exit=\d+$", re.MULTILINE)
"""What tests read of a block, and Markdown does not."""

PICTURE = re.compile(r"!\[[^\]]*\]\(pictures/([\w-]+)\.svg\)(?!\{)")
SUMMARY_ROWS = 12


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made."""
    pages = {
        "gpus.md": gpus_page(),
        "models.md": models_page(),
        "recipes.md": recipes_page(),
        "run-file.md": run_file_page(),
        "command-line.md": command_line_page(),
        **{name: from_repository(path) for name, path in FROM_REPOSITORY.items()},
    }
    for name, content in (pages | {"inks.css": inks(), "pictures/errors.svg": errors_picture()}).items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made where a page asks for it."""
    markdown = EXIT_CODE.sub("```console", markdown)
    for asked, made in {"errors_summary": errors_summary, "parameters": parameters, "peers": peers_tables}.items():
        markdown = markdown.replace(f"{{{{ {asked} }}}}", made())
    return PICTURE.sub(in_the_page, markdown)


def in_the_page(match: re.Match[str]) -> str:
    """A picture that is drawn here as a part of the page, where it takes its colors; others as they are."""
    picture = all_drawn().get(match[1])
    return f'<div class="drawn">{picture}</div>' if picture else match[0]


all_drawn = cache(drawings)


def inks() -> str:
    """The inks of pictures on a dark ground: those of `fitune serve`."""
    style = (ROOT / "planner" / "serve" / "static" / "page.css").read_text(encoding="utf-8")
    dark = style.partition(':root[data-theme="dark"] {')[2].partition("}")[0]
    lines = [line.strip() for line in dark.splitlines() if line.strip().startswith("--ink-")]
    return f'[data-md-color-scheme="slate"] {{ {" ".join(lines)} }}\n'


def parameters() -> str:
    """Every parameter of the verbs, with the verbs that take it."""
    taken: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    for verb in (answers.can, answers.plan, answers.estimate):
        for name, given in signature(verb).parameters.items():
            if name != "access":
                taken.setdefault(name, []).append(verb.__name__)
                said.setdefault(name, words(given.annotation))
    return markdown_table(
        ("parameter", "of", "what"), [(f"`{name}`", ", ".join(of), said[name]) for name, of in taken.items()]
    )


def peers_tables() -> str:
    """What is shown of other trainers' files, without what is for those who work on the code."""
    text = from_repository("planner/peers/README.md")
    return text[text.index("## Written, read again") :]


def gpus_page() -> str:
    """All cards with what planning needs of them."""
    rows = [
        (
            gpu.name,
            f"{gpu.memory_bytes / GIB:.1f}" + ("" if gpu.memory_measured else " (bounded)"),
            f"{gpu.bandwidth_bytes_per_s / 1e9:,.0f}" if gpu.bandwidth_bytes_per_s else "",
            f"{rate / 1e12:,.0f}" if (rate := gpu.flops.bf16 or gpu.flops.fp16) else "",
            "bf16" if gpu.supports_bf16 else "fp16",
            f"{gpu.price.median_usd_per_hour:.2f}" if gpu.price else "",
            gpu.architecture or "",
        )
        for gpu in find_gpus(None)
    ]
    headings = ("GPU", "GiB that torch sees", "GB/s", "TFLOP/s, 16 bit", "format", "USD/h, median", "generation")
    about = "Each fact has its source in `profiles/gpus/`; `fitune gpus NAME --json` shows it. Empty: not known."
    return f"# GPUs\n\n{about}\n\n{markdown_table(headings, rows)}\n"


def models_page() -> str:
    """All models that are known without the Hub."""
    rows = [
        (
            model.hf_id,
            format_count(num_parameters(model)),
            model.num_hidden_layers + (model.num_decoder_layers or 0),
            model.hidden_size,
            f"{model.vocab_size:,}",
            f"{model.max_position_embeddings:,}" if model.max_position_embeddings else "",
            ", ".join(alias for alias in model.aliases if "/" not in alias),
        )
        for model in find_models(None)
    ]
    about = "Any other model is read from its `config.json`, in a folder or on the Hub."
    headings = ("model", "parameters", "layers", "width", "vocabulary", "positions", "also called")
    return f"# Models\n\n{about}\n\n{markdown_table(headings, rows)}\n"


def recipes_page() -> str:
    """All recipes with their sources."""
    rows = [
        (recipe.name, recipe.model, recipe.gpu, f"{recipe.objective}, {recipe.method}", recipe.about, recipe.source)
        for recipe in find_recipes(None)
    ]
    about = "`fitune plan --recipe NAME` plans one for your card and data."
    return f"# Recipes\n\n{about}\n\n{markdown_table(('recipe', 'model', 'card', 'how', 'for', 'source'), rows)}\n"


def run_file_page() -> str:
    """Every knob of the run file, in the order of the file."""
    properties = RunConfig.model_json_schema()["properties"]
    parts = [
        f"## {title}\n\n"
        + markdown_table(
            ("knob", "default", "what"),
            [(f"`{name}`", default_of(properties[name]), properties[name].get("description", "")) for name in names],
        )
        for title, names in SECTIONS
    ]
    about = (
        "`fitune plan -o run.yaml` writes it with every knob spelled out; keys that it does not know are refused. "
        "`fitune schema -o run.schema.json` writes its JSON schema, with which editors complete and check it."
    )
    return f"# The run file\n\n{about}\n\n" + "\n\n".join(parts) + "\n"


def default_of(schema: dict[str, object]) -> str:
    """The default of a knob, as it stands in the file."""
    if "default" not in schema:
        return ""
    value = schema["default"]
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def command_line_page() -> str:
    """What `--help` says of every verb."""
    runner, app = CliRunner(), application()
    parts = []
    for verb in VERBS:
        shown = runner.invoke(app, [verb, "--help"], prog_name="fitune", env={"COLUMNS": "100", "NO_COLOR": "1"})
        parts.append(f"## fitune {verb}\n\n```text\n{shown.output.strip()}\n```")
    return "# The command line\n\n" + "\n\n".join(parts) + "\n"


def from_repository(path: str) -> str:
    """A page that stands elsewhere in the repository, with links to what is no page as their words alone."""
    pages = {source: name for name, source in FROM_REPOSITORY.items()} | {"planner/peers/README.md": "peers.md"}
    folder = (ROOT / path).parent

    def linked(match: re.Match[str]) -> str:
        words, (target, _, anchor) = match[1], match[2].partition("#")
        found = (folder / target).resolve()
        page = pages.get(found.relative_to(ROOT).as_posix()) if found.is_relative_to(ROOT) else None
        return f"[{words}]({page}{'#' + anchor if anchor else ''})" if page else words

    # Pictures of the repository that stand in docs/ are beside the page.
    return LINK.sub(linked, (ROOT / path).read_text(encoding="utf-8")).replace("](docs/", "](")


def errors_summary() -> str:
    """The first rows of each table of errors: by harness, number of cards and method."""
    text = (ROOT / FROM_REPOSITORY["errors.md"]).read_text(encoding="utf-8")
    parts = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        parts.append("\n".join((f"### {section.partition(chr(10))[0]}", "", *lines[: SUMMARY_ROWS + 2])))
    return "\n\n".join(parts)
