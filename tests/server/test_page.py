"""The page at `/`: what its headers forbid, and what somebody sees who uses it in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from xlaserve.server.page import PATHS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = tuple(
    f"--{flag}"
    for flag in ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync", "no-first-run")
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_comes_from_elsewhere(shared: Live, path: str) -> None:
    response = shared.client.get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", response.text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\bon[a-z]+=\"|style=\"", response.text)


def test_it_can_be_left_out() -> None:
    with live_server(ScriptedEngine(), page=False) as server:
        assert {path: server.client.get(path).status_code for path in PATHS} == dict.fromkeys(PATHS, 404)


def test_what_the_engine_is_doing(shared: Live) -> None:
    answer = shared.client.get("/engine").json()
    assert answer["stats"]["num_blocks"] == 10
    assert answer["report"]["slots"] == 8
    (graph,) = answer["report"]["graphs"]
    assert (graph["name"], graph["runs"], graph["tokens"], graph["padding"]) == ("generate-8-128", 30, 90, 150)


@contextmanager
def opened(url: str) -> Generator[tuple[Any, list[str]]]:
    """A browser's page, and what its console says."""
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        try:
            yield page, said
        finally:
            browser.close()


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@needs_browser
def test_a_conversation_with_probabilities(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with live_server(engine) as server, opened(server.url) as (page, said):
        page.get_by_text("scripted/model").wait_for()
        page.get_by_label("Most tokens").fill("7")
        page.get_by_label("Message", exact=True).fill("<b>hello</b>")
        page.get_by_label("Message", exact=True).press("Enter")
        answer = page.locator("li[data-role=assistant]")
        answer.locator("footer", has_text="ended by length").wait_for()
        assert answer.locator(".token").all_text_contents() == list("abcdefg")
        assert page.locator("li[data-role=user]").text_content() == "<b>hello</b>"
        assert "12 prompt tokens" not in answer.locator("footer").text_content()
        assert "7 generated" in answer.locator("footer").text_content()
        answer.locator(".token").nth(2).hover()
        told = page.locator("#token").text_content()
        assert '"c"' in told
        assert "13.5%" in told  # the scripted log probability, -2
        assert "since last token" in told
        page.get_by_label("Message", exact=True).fill("again")
        page.get_by_role("button", name="Send").click()
        page.locator("li[data-role=assistant] footer", has_text="ended").nth(1).wait_for()
        sent = bytes(token for token in engine.submitted[1].prompt_token_ids).decode()
        assert sent == "<user><b>hello</b><assistant>abcdefg<user>again<assistant>"
        page.screenshot(path=tmp_path / "chat.png")
    assert said == []


@needs_browser
def test_stopping_an_answer_aborts_it() -> None:
    engine = ScriptedEngine()
    engine.pause_after = 3
    with live_server(engine) as server, opened(server.url) as (page, said):
        page.get_by_text("scripted/model").wait_for()
        page.get_by_label("Message", exact=True).fill("go on")
        page.get_by_role("button", name="Send").click()
        page.locator("li[data-role=assistant] .token").nth(2).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Send").wait_for()
        assert engine.aborted.wait(30)
        assert page.locator("li[data-role=assistant] .token").all_text_contents() == list("abc")
    assert said == []


@needs_browser
def test_an_error_is_shown_and_the_message_kept() -> None:
    engine = ScriptedEngine(max_model_len=40)
    with live_server(engine) as server, opened(server.url) as (page, _said):
        page.get_by_text("scripted/model").wait_for()
        page.get_by_label("Message", exact=True).fill("x" * 60)
        page.get_by_role("button", name="Send").click()
        page.get_by_role("alert").filter(has_text="maximum context length is 40 tokens").wait_for()
        assert page.get_by_label("Message", exact=True).input_value() == "x" * 60
        assert page.locator("#messages li").count() == 0


@needs_browser
def test_the_live_view(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.pause_after = 2
    with live_server(engine) as server, opened(f"{server.url}/#engine") as (page, said):
        with server.client.stream("POST", "/v1/completions", json={"prompt": "hello", "stream": True, "max_tokens": 9}) as response:
            lines = response.iter_lines()  # kept: closing it would end the request
            next(lines)
            page.locator("#slots td", has_text="cmpl-").wait_for()
            row = page.locator("#slots tbody tr").first.locator("td").all_text_contents()
            assert row[0] == "0"
            assert row[2:6] == ["5", "0", "5", "1"]
            assert page.locator("#blocks").text_content() == "5 of 10"
            graph = page.locator("#graphs tbody tr").first.locator("td").all_text_contents()
            assert graph[:11] == ["generate-8-128", "generate", "8", "1", "128", "loaded", "0.25 s", "4.0 ms", "30", "90", "150"]
            page.screenshot(path=tmp_path / "engine.png")
        engine.go_on.set()
    assert said == []
