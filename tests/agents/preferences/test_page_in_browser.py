"""The page in a real browser without a screen: what a person sees, and what the keys do.

Skipped where there is no Chromium, unless BILEVEL_GYM_NEEDS_BROWSER is set, as it is in CI.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bilevel_gym.agents.preferences.files import PreferenceLog, Signature, read_preferences
from bilevel_gym.agents.preferences.labels import Pair
from bilevel_gym.wrappers import Segment

from .questions import ACTIONS, H, asked, pair, served

NEEDED = bool(os.environ.get("BILEVEL_GYM_NEEDS_BROWSER"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(BROWSER is None and not NEEDED, reason="no Chromium here")
sync_api: Any = pytest.importorskip("playwright.sync_api") if not NEEDED else None
if NEEDED:
    from playwright import sync_api

DARK = "rgb(20, 23, 29)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert BROWSER is not None, "BILEVEL_GYM_NEEDS_BROWSER is set, and there is no Chromium: install chromium"
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=30_000)
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that is not allowed a single error."""
    context = browser.new_context(viewport={"width": 1000, "height": 760})
    context.set_default_timeout(30_000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def labels(path: Path) -> dict[int, str]:
    return dict(read_preferences(path).labels)


def wait_for(page: Any, selector: str, text: str) -> None:
    sync_api.expect(page.locator(selector)).to_contain_text(text)


def shown(page: Any) -> list[str]:
    """What both canvases show now."""
    drawn = page.evaluate("[...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL())")
    return [str(picture) for picture in drawn]


def test_labelling_by_keys(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "asked.prefs"
    trainer = asked(path, 5)
    with served(path) as server:
        page.goto(server.url)
        sync_api.expect(page.locator("#question")).to_be_visible()
        wait_for(page, "#counts", "0 answered \u00b7 5 open")
        wait_for(page, "#world", "Disc-v0 \u00b7 asked.prefs")

        # the pictures move, both, and stand still on pause
        before = shown(page)
        page.wait_for_function(
            "(before) => [...document.querySelectorAll('canvas')].every((c, i) => c.toDataURL() !== before[i])",
            arg=before,
        )
        page.keyboard.press("Space")
        wait_for(page, "#pause", "Play")
        still = shown(page)
        page.wait_for_timeout(400)
        assert shown(page) == still
        page.keyboard.press("Space")

        # of question 0, the right episode ends after 5 steps, and that is said then
        sync_api.expect(page.locator("#right .end")).to_have_css("visibility", "visible")
        assert page.locator("#right .end").text_content() == "Episode over after step 5"  # even if it has gone again
        sync_api.expect(page.locator("#left .end")).to_have_css("visibility", "hidden")

        for number, (key, label) in enumerate((("ArrowLeft", "left"), ("ArrowRight", "right"), ("=", "equal"))):
            page.keyboard.press(key)
            wait_for(page, "#counts", f"{number + 1} answered \u00b7 {4 - number} open")
            assert labels(path)[number] == label

        page.reload()
        wait_for(page, "#counts", "3 answered \u00b7 2 open")
        page.keyboard.press("s")
        wait_for(page, "#counts", "4 answered \u00b7 1 open")
        page.keyboard.press("ArrowDown")
        wait_for(page, "#waiting", "Waiting for questions")
        sync_api.expect(page.locator("#waiting")).to_be_visible()
        assert labels(path) == {0: "left", 1: "right", 2: "equal", 3: "skip", 4: "equal"}

        # a trainer asks while the page waits
        trainer.ask(5, pair(5))
        sync_api.expect(page.locator("#question")).to_be_visible()
        page.keyboard.press("ArrowRight")
        wait_for(page, "#counts", "6 answered \u00b7 0 open")

        # back twice, corrected; then on with what is open, which is nothing
        page.keyboard.press("Backspace")
        wait_for(page, "#said", "Question 5 was answered: right is better.")
        page.keyboard.press("Backspace")
        wait_for(page, "#said", "Question 4 was answered: equal.")
        sync_api.expect(page.locator("[data-label=equal]")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("ArrowLeft")
        wait_for(page, "#said", "Saved question 4: left is better.")
        sync_api.expect(page.locator("#waiting")).to_be_visible()
    assert labels(path) == {0: "left", 1: "right", 2: "equal", 3: "skip", 4: "left", 5: "right"}


def test_buttons_a_lost_server_and_another_window(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "asked.prefs"
    asked(path, 4)
    with served(path) as server:
        page.goto(server.url)
        wait_for(page, "#counts", "0 answered \u00b7 4 open")
        page.click("[data-label=right]")
        wait_for(page, "#counts", "1 answered")
        page.keyboard.press("Space")  # pauses, and does not press the button again
        wait_for(page, "#pause", "Play")
        assert labels(path) == {0: "right"}
        page.click("#back")
        wait_for(page, "#said", "Question 0 was answered")
        page.keyboard.press("Backspace")
        wait_for(page, "#trouble", "Nothing was answered before this.")
        page.click("#on")
        sync_api.expect(page.locator("#on")).to_be_hidden()
        PreferenceLog(path).answer(1, "left")  # somebody else
        sync_api.expect(page.locator("#question")).to_have_attribute("data-id", "2")
        wait_for(page, "#counts", "2 answered \u00b7 2 open")
        port = server.server_port
    page.keyboard.press("ArrowLeft")
    wait_for(page, "#trouble", "The server does not answer.")
    assert labels(path) == {0: "right", 1: "left"}
    with served(path, port):
        sync_api.expect(page.locator("#trouble")).to_be_hidden()
        page.keyboard.press("ArrowLeft")
        wait_for(page, "#counts", "3 answered \u00b7 1 open")
    assert labels(path) == {0: "right", 1: "left", 2: "left"}


@pytest.mark.parametrize("kind", ["lines", "numbers", "frames"])
def test_observations_move_where_there_are_no_pictures(page: Any, tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)

    def segment() -> Segment:
        obs: Any = {
            "lines": rng.normal(size=(H, 3)),
            "numbers": rng.permutation(H),
            "frames": rng.integers(0, 256, (H + 3, 12, 16)).astype(np.uint8),
        }[kind]
        return Segment(obs, np.zeros(H, int), np.ones(H, bool), frame_stack=4 if kind == "frames" else 1)

    signature = Signature.of("Plain-v0", gym.spaces.Discrete(2), ACTIONS, H)
    PreferenceLog(tmp_path / "p", signature).ask(0, Pair(segment(), segment()))
    with served(tmp_path / "p") as server:
        page.goto(server.url)
        sync_api.expect(page.locator("#question")).to_be_visible()
        before = shown(page)
        assert before[0] != before[1]
        page.wait_for_function(
            "(before) => [...document.querySelectorAll('canvas')].every((c, i) => c.toDataURL() !== before[i])",
            arg=before,
        )


def test_it_fits_a_phone_and_a_dark_room(browser: Any, tmp_path: Path) -> None:
    asked(tmp_path / "p", 1)
    context = browser.new_context(
        viewport={"width": 360, "height": 700}, color_scheme="dark", reduced_motion="reduce", has_touch=True
    )
    page = context.new_page()
    with served(tmp_path / "p") as server:
        page.goto(server.url)
        sync_api.expect(page.locator("#question")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        bottom = page.locator("[data-label=skip]").bounding_box()
        assert bottom["y"] + bottom["height"] <= 700  # every answer without scrolling
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == DARK
        wait_for(page, "#pause", "Play")  # where motion is not wanted, it begins on demand
        names = [button.inner_text().split()[0] for button in page.get_by_role("button").all()]
        assert names == ["Left", "Equal", "Right", "Skip", "Go", "Play", "Slower", "Faster"]
        assert page.get_by_role("img", name="right segment: 12 steps, the episode is over after 5").is_visible()
        page.tap("[data-label=left]")
        wait_for(page, "#counts", "1 answered")
    context.close()
    assert labels(tmp_path / "p") == {0: "left"}
