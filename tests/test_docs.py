"""The documentation is built without a warning, shows what is there, and its commands do what it says."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from planner.cli import VERBS
from planner.config.run_config import RunConfig
from profiles.gpu_catalog import all_gpus
from profiles.model_catalog import all_models
from tests.console_examples import run_as_shown, sections_with_examples

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXT = "\n".join(f"## {page.name}: {page.read_text(encoding='utf-8')}" for page in PAGES)

pytest.importorskip("mkdocs", reason="the documentation is built with the extra `docs`")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


def page(site, name):
    return (site / name / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", list(sections_with_examples(TEXT)))
def test_commands_print_what_the_docs_show(section, tmp_path):
    run_as_shown(section, tmp_path)


def test_every_fact_has_a_line(site):
    gpus, models, run_file, commands = (page(site, name) for name in ("gpus", "models", "run-file", "command-line"))
    assert all(f"<td>{gpu.name}</td>" in gpus for gpu in all_gpus())
    assert all(f"<td>{model.hf_id}</td>" in models for model in all_models())
    assert all(f"<code>{knob}</code>" in run_file for knob in RunConfig.model_fields)
    assert all(f"Usage: fitune {verb}" in commands for verb in VERBS)


def test_the_functions_are_described_with_their_examples(site):
    words = unescape(re.sub(r"<[^>]+>", "", page(site, "python")))
    assert "Whether model can be fine-tuned on gpu, and how." in words
    assert 'answer = planner.can("7b", "t4")' in words


def test_the_errors_are_shown_with_a_picture(site):
    html = page(site, "accuracy")
    assert "By the closed form" in html
    assert "<td>qlora</td>" in html
    assert (site / "pictures" / "errors.svg").read_text().startswith("<?xml")


def test_parameters_are_described_where_they_are_defined(site):
    words = unescape(re.sub(r"<[^>]+>", " ", page(site, "python")))
    assert "Tokens a row is cut to." in words
    assert "Examples of one optimizer step." in words


def test_blocks_and_pictures_are_written_as_such(site):
    for html in site.rglob("*.html"):
        assert "console exit=" not in html.read_text(encoding="utf-8"), html
    memory = page(site, "memory")
    assert memory.count('<div class="drawn"><svg') == 8
    assert "--ink-weights: #" in (site / "inks.css").read_text(encoding="utf-8")


def test_pictures_that_are_shown_are_there(site):
    for html in site.rglob("*.html"):
        for source in re.findall(r'<img[^>]+src="([^"#]+)', html.read_text(encoding="utf-8")):
            assert (html.parent / source).is_file(), f"{html}: {source}"


def test_a_quantized_base_needs_more_where_the_docs_say_so():
    import planner

    knobs = {"per_device_train_batch_size": 4}
    sizes = {
        (model, method): planner.estimate(model, "a100-80gb", method=method, max_length=8192, knobs=knobs).estimate
        for model in ("phi-2", "7b")
        for method in ("lora", "qlora")
    }
    assert sizes["phi-2", "qlora"].process_bytes > sizes["phi-2", "lora"].process_bytes
    assert sizes["7b", "qlora"].process_bytes < sizes["7b", "lora"].process_bytes


def test_nothing_is_loaded_from_elsewhere(site):
    for html in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(https?:[^"]+)', html.read_text())
        assert loaded == [], html
