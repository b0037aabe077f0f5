"""The page in a real browser: from the question to the file on the disk."""

import fcntl
import re
from io import BytesIO
from urllib.parse import parse_qs, urlparse

import pytest
from PIL import Image

import planner
from planner.config.run_file import parse_run_file, read_run_file
from planner.report.answer import verdict_sentence
from tests.planner.serve.browser import PHONE, chromium, chromium_path, visit
from tests.planner.serve.runs_on_disk import log_line
from tests.planner.serve.screenshots import PICTURES, SHOTS, take

if chromium_path() is None:
    pytest.skip("there is no Chromium on this machine: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect

QUESTION = "/?model=7b&gpu=A100-SXM4-80GB&rows=52000"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def verdict(page):
    return page.locator("#verdict")


def settled(page):
    """Wait until the answer and its cards are there."""
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#cards tbody tr")).not_to_have_count(0)


def test_from_the_question_to_the_downloaded_file(browser, served, tmp_path):
    with visit(browser, served.url) as seen:
        page = seen.page
        page.get_by_label("Model", exact=True).fill("mistral-7b")
        page.get_by_label("GPU", exact=True).select_option("T4")
        page.get_by_text("QLoRA", exact=True).click()
        page.get_by_label("Length", exact=True).fill("1024")
        page.get_by_label("Rows of data", exact=True).fill("52000")
        expected = planner.plan("mistral-7b", "t4", method="qlora", max_length=1024, rows=52_000)
        expect(verdict(page)).to_have_text(verdict_sentence(expected))
        settled(page)
        with page.expect_download() as started:
            page.get_by_text("Download run.yaml").click()
        started.value.save_as(tmp_path / "run.yaml")
        assert started.value.suggested_filename == "run.yaml"
        assert read_run_file(tmp_path / "run.yaml") == expected.config
        assert parse_qs(urlparse(page.url).query)["max_length"] == ["1024"]
        assert seen.said == []
        assert all(url.startswith(served.url) for url in seen.asked)


def test_a_link_gives_another_user_the_same_answer(browser, served):
    with visit(browser, served.url + QUESTION) as first:
        first.page.get_by_label("Rank", exact=True).fill("64")
        expect(first.page.locator("#changes")).to_contain_text("lora.r")
        settled(first.page)
        words, link = first.page.locator(".verdict .figures").inner_text(), first.page.url
    with visit(browser, link) as second:
        assert second.page.locator(".verdict .figures").inner_text() == words
        assert second.page.get_by_label("Rank", exact=True).input_value() == "64"


def test_a_moved_knob_says_what_it_changed(browser, served):
    with visit(browser, served.url + QUESTION) as seen:
        seen.page.get_by_text("QLoRA", exact=True).click()
        changed = seen.page.locator("#changes")
        expect(changed).to_contain_text("quantization none → nf4")
        expect(changed).to_contain_text("GiB")


def test_a_cell_and_an_alternative_ask_for_themselves(browser, served):
    with visit(browser, served.url + QUESTION) as seen:
        page = seen.page
        page.get_by_role("link", name=re.compile("^4 rows of 512 tokens")).click()
        expect(page.locator(".grid td.chosen")).to_have_attribute("class", re.compile("fits"))
        expect(page.get_by_label("Length", exact=True)).to_have_value("512")
        page.locator("#options-title ~ .scroll a.ask").first.click()
        expect(page.locator("#set")).to_have_value(re.compile("optim="))
        page.go_back()
        expect(page.locator("#set")).to_have_value("per_device_train_batch_size=4")
        settled(page)
        assert seen.said == []


def test_errors_are_text_and_the_next_answer_comes(browser, served):
    with visit(browser, served.url + QUESTION) as seen:
        page = seen.page
        page.get_by_label("Length", exact=True).fill("many")
        expect(page.get_by_role("alert")).to_contain_text("max_length is 'many', which is no whole number")
        page.get_by_label("Length", exact=True).fill("2048")
        expect(verdict(page)).to_contain_text("fits one A100")
        page.get_by_label("Model", exact=True).fill("mistral-7c")
        page.get_by_label("Model", exact=True).press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("near it are")
        assert seen.said == []


def test_what_does_not_fit_shows_what_would(browser, served):
    with visit(browser, f"{served.url}/?model=mistral-7b&gpu=V100-SXM2-16GB&method=full") as seen:
        page = seen.page
        expect(page.locator(".verdict .word")).to_have_text("No")
        expect(page.locator("#download")).to_have_count(0)
        page.get_by_role("link", name="method lora").click()
        expect(page.locator(".verdict .word")).to_have_text("Yes")
        expect(page.locator("#changes")).to_contain_text("no → fits")


def test_it_is_asked_and_answered_by_keyboard_alone(browser, served, tmp_path):
    with visit(browser, served.url) as seen:
        page = seen.page
        keys = page.keyboard

        def tab_to(where, most=80):
            for _ in range(most):
                if page.evaluate("where => document.activeElement?.matches(where)", where):
                    return
                keys.press("Tab")
            raise AssertionError(f"no way to {where}")

        keys.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
        tab_to("#model")
        keys.type("phi-2")
        tab_to("#gpu")
        keys.type("T4 (")
        tab_to("[name=method]")
        keys.press("ArrowRight")
        keys.press("ArrowRight")
        expect(verdict(page)).to_have_text(verdict_sentence(planner.can("phi-2", "t4", method="lora")))
        settled(page)
        tab_to("#download")
        with page.expect_download() as started:
            keys.press("Enter")
        text = started.value.path().read_text()
        assert parse_run_file(text, "run.yaml") == planner.plan("phi-2", "t4", method="lora").config
        tab_to(".grid a")
        keys.press("Enter")
        expect(page.locator("#changes")).to_contain_text("max_length")


def test_it_answers_without_a_script(browser, served):
    with visit(browser, served.url, java_script_enabled=False) as seen:
        page = seen.page
        page.get_by_label("Model", exact=True).fill("13b")
        page.get_by_label("GPU", exact=True).select_option("24GB")
        page.get_by_role("button", name="Answer").click()
        assert verdict(page).inner_text() == verdict_sentence(planner.can("13b", "24GB"))
        page.get_by_role("link", name="Ask the common cards").click()
        assert "H100-SXM5-80GB" in page.inner_text("table")


@pytest.mark.parametrize("width", [340, 800])
def test_a_narrow_screen_is_never_scrolled_sideways(browser, served, width):
    with visit(browser, served.url + QUESTION, viewport=PHONE | {"width": width}, is_mobile=True) as seen:
        settled(seen.page)
        for path in (None, "/?model=70b&gpu=T4", "/?model=nobody", "/cards?model=7b&gpu=T4", "/runs", "/reference"):
            if path:
                seen.page.goto(served.url + path)
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.said == []


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        (QUESTION, "light"),
        (QUESTION, "dark"),
        ("/?model=70b&gpu=T4", "dark"),
        ("/runs", "light"),
        ("/reference", "dark"),
    ],
)
def test_nothing_stands_in_the_way_of_a_screen_reader_or_of_weak_eyes(browser, served, scheme, path):
    from axe_playwright_python.sync_playwright import Axe

    with visit(browser, served.url + path, color_scheme=scheme) as seen:
        if "model" in path:
            settled(seen.page)
        found = Axe().run(seen.page)
        assert found.violations_count == 0, found.generate_report()


def test_the_theme_can_be_chosen_and_is_remembered(browser, served):
    ground = "getComputedStyle(document.body).backgroundColor"
    with visit(browser, served.url, color_scheme="light") as seen:
        page = seen.page
        light = page.evaluate(ground)
        page.get_by_role("button", name="Theme").click()
        page.get_by_role("button", name="Theme").click()
        dark = page.evaluate(ground)
        page.reload()
        assert page.evaluate(ground) == dark != light


def test_a_running_launch_is_shown_live(browser, served):
    folder = served.folder / "runs" / "live"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with visit(browser, f"{served.url}/runs") as seen:
            live = seen.page.locator(".live")
            expect(live).to_contain_text("is training")
            expect(live).to_contain_text("step 20 of 40")
            with (folder / "log.jsonl").open("a") as log:
                log.write(log_line(30))
            expect(live).to_contain_text("step 30 of 40")
            assert seen.said == []
    (folder / "log.jsonl").write_text("".join(log_line(step) for step in (1, 10, 20)))


def test_the_pictures_of_the_docs_can_be_made_again(browser, served, tmp_path):
    take(browser, served.url, tmp_path)
    sizes = {name: Image.open(BytesIO((tmp_path / f"{name}.png").read_bytes())).size for name in SHOTS}
    assert {path.name for path in PICTURES.glob("page-*.png")} == {f"{name}.png" for name in SHOTS}
    assert all(width >= 390 and height >= 800 for width, height in sizes.values())


def test_a_server_that_is_gone_is_told(browser, served):
    with visit(browser, served.url + QUESTION) as seen:
        settled(seen.page)
        seen.page.route("**/answer*", lambda route: route.abort())
        seen.page.get_by_label("Rank", exact=True).fill("8")
        expect(seen.page.get_by_role("alert")).to_contain_text("The server does not answer")
