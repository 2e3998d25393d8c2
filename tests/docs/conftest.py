"""Headless Chromium: `explorer` is a new page of docs/explorer.html; `functions` is a shared one for pure functions."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.docs.markdown import REPOSITORY

EXPLORER = REPOSITORY / "docs" / "explorer.html"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's browser, per module, since playwright's event loop conflicts with tests that have their own."""
    api = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install -e ".[dev]"')
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        yield launched
        launched.close()


@contextlib.contextmanager
def opened(browser: Any, **options: Any) -> Iterator[Any]:
    """Open the page in a new window; at the end it must have logged nothing and requested only itself."""
    usual = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light", "reduced_motion": "reduce"}
    context = browser.new_context(**{**usual, **options})
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(f"error: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(EXPLORER.as_uri())
    yield page
    context.close()
    assert messages == []
    assert {url.partition("#")[0] for url in requests} == {EXPLORER.as_uri()}


@pytest.fixture
def explorer(browser: Any) -> Iterator[Any]:
    with opened(browser) as page:
        yield page


@pytest.fixture(scope="module")
def functions(browser: Any) -> Iterator[Any]:
    with opened(browser) as page:
        yield page


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
