"""Accessibility of docs/explorer.html: keyboard, screen reader, phone, dark mode, no network."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.docs.conftest import EXPLORER, opened
from tests.docs.markdown import REPOSITORY

# The background of an element is the first opaque one behind it; light-dark() is resolved by getComputedStyle.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return rgb("white");
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const style = getComputedStyle(element);
    const color = rgb(element.ownerSVGElement ? style.fill : style.color);
    const [a, b] = [luminance(color), luminance(background(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${walker.currentNode.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""

# Labels of drawings that stick out of them or lie on each other, and what makes the page wider than the window.
OUTSIDE = """() => {
  const found = [];
  for (const text of document.querySelectorAll("svg text")) {
    const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
    if (inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 2) {
      found.push(text.textContent);
    }
  }
  for (const drawing of document.querySelectorAll("svg")) {
    const labels = [...drawing.querySelectorAll("text")];
    labels.forEach((label, i) => labels.slice(i + 1).forEach(other => {
      const a = label.getBoundingClientRect(), b = other.getBoundingClientRect();
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 4) found.push(`${label.textContent} over ${other.textContent}`);
    }));
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(`${document.documentElement.scrollWidth} wide`);
  return found;
}"""

# Read in the papers that the table names.
PUBLISHED = [16.4, 11.7, 7.32, 6.66, 4.94, 4.82, 3.58, 3.57, 2.25]

CONTROLS = {"button", "slider", "radio", "checkbox", "link", "image", "DisclosureTriangle"}


class Page(HTMLParser):
    """Links, identifiers and quoted figures of the page, and the answers to its questions."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, list[str]] = {}  # the links of each
        self.quotes: list[dict[str, str]] = []  # page, row of a table there, text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._answer: str | None = None
        self._quote = False
        self.feed(EXPLORER.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "details" and attributes.get("id"):
            self._answer = str(attributes["id"])
            self.answers[self._answer] = []
        if tag == "a" and self._answer:
            self.answers[self._answer].append(str(attributes["href"]))
        if tag == "span":
            self._quote = "data-from" in attributes
            if self._quote:
                page, row = str(attributes["data-from"]), " ".join((attributes.get("data-row") or "").split())
                self.quotes.append({"page": page, "row": row, "text": ""})

    def handle_data(self, data: str) -> None:
        if self._quote:
            self.quotes[-1]["text"] += data

    def handle_endtag(self, tag: str) -> None:
        self._answer = None if tag == "details" else self._answer
        self._quote = self._quote and tag != "span"


# --- without a browser --------------------------------------------------------------------------------------------


def test_the_file_needs_no_other() -> None:
    for tag, attributes in Page().tags:
        assert tag not in {"iframe", "img", "object", "embed"}
        assert "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
    assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\b|url\(|@import", EXPLORER.read_text())


def test_twenty_questions_have_a_measurement_or_a_source_each() -> None:
    answers = Page().answers
    assert len(answers) == 20
    for question, links in answers.items():
        assert any(link.startswith(("https://", "results/")) for link in links), f"{question} has no source"


def test_quoted_figures_stand_where_they_are_from() -> None:
    quotes = Page().quotes
    assert len(quotes) > 30
    for quote in quotes:
        lines = (EXPLORER.parent / quote["page"]).read_text().splitlines()
        rows = [line for line in lines if not quote["row"] or line.startswith(f"| {quote['row']} |")]
        for figure in re.findall(r"\d+(?:\.\d+)?", quote["text"]):
            whole = re.compile(rf"(?<![\d.]){re.escape(figure)}(?!\.?\d)")
            assert any(map(whole.search, rows)), f"{figure} isn't on {quote['page']} any more, in row {quote['row']!r}"


# --- in a browser -------------------------------------------------------------------------------------------------


def test_the_chart_of_batch_sizes_is_that_of_the_results(explorer: Any) -> None:
    points = explorer.locator("#measured circle").evaluate_all("all => all.map(e => ({...e.dataset}))")
    table = (
        (REPOSITORY / "docs" / "results" / "batch_size.md")
        .read_text()
        .partition("## A residual network on Fashion-MNIST")[2]
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    images = rows[0][1:]
    for point in points:
        row = next(row for row in rows if row[0] == point["norm"])
        assert row[1 + images.index(point["images"])].startswith(f"{float(point['value']):.1f} ±")
    assert len(points) == 12


def test_the_chart_of_errors_is_that_of_its_table(explorer: Any) -> None:
    explorer.get_by_text("The figures and where they are printed").click()
    rows = explorer.locator("#errors-table tbody tr").evaluate_all(
        "all => all.map(r => [...r.cells].map(c => c.innerText))"
    )
    name = explorer.locator("#errors svg").get_attribute("aria-label")
    for year, network, error, normalized, _ in rows:
        assert f"{year} {network} {error} %" + (", with batch" if normalized == "yes" else "") in name
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    ends = explorer.locator("#errors circle").evaluate_all("all => all.map(e => Number(e.getAttribute('cx')))")
    errors = [float(row[2]) for row in rows]
    assert errors == PUBLISHED
    slopes = {round((a - ends[-1]) / (b - errors[-1]), 3) for a, b in zip(ends[:-1], errors[:-1], strict=True)}
    assert len(slopes) == 1  # one scale


def names(page: Any) -> list[tuple[str, str]]:
    """(role, name) of everything that a screen reader announces."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"]]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]


def test_every_control_has_a_name_of_its_own(explorer: Any) -> None:
    found = names(explorer)
    assert {role for role, _ in found} >= {"slider", "radio", "button", "checkbox", "link", "image"}
    assert [role for role, name in found if role in CONTROLS and not name.strip()] == []
    sliders = [name for role, name in found if role == "slider"]
    assert len(sliders) == len(set(sliders)) == 48 + 16

    explorer.evaluate("document.querySelector('#gamma').previousElementSibling.previousElementSibling.remove()")
    assert ("slider", "") in names(explorer)  # the kind of error that this test finds


def test_the_keyboard_reaches_everything(explorer: Any) -> None:
    explorer.keyboard.press("Tab")
    skip = explorer.locator(".skip")
    assert skip.evaluate("e => e === document.activeElement && e.getBoundingClientRect().left >= 0")
    reached = set()
    for _ in range(120):
        explorer.keyboard.press("Tab")
        reached.add(explorer.evaluate("document.activeElement.id || document.activeElement.ariaLabel || ''"))
    sliders = "x size centre spread gamma beta eps rate window change torch keras batch step local ranks"
    buttons = "theme others draw-batch average go draw-steps draw-many"
    assert reached >= {*sliders.split(), *buttons.split(), "Rank 0, sample 1, channel A, position 2"}
    assert sum("position" in name for name in reached) == 1  # one stop for the batch; arrows go on from there

    explorer.locator("#gamma").focus()
    explorer.keyboard.press("End")
    assert explorer.locator("output[for=gamma]").inner_text() == "3.00"
    explorer.get_by_label("2 + 2").focus()
    explorer.keyboard.press("ArrowRight")
    assert explorer.get_by_label("3 + 1", exact=True).is_checked()
    question = explorer.locator("#freezing summary")
    question.focus()
    explorer.keyboard.press("Enter")
    assert explorer.locator("#freezing p").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(browser: Any, scheme: str) -> None:
    with opened(browser, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        paper = "getComputedStyle(document.documentElement).backgroundColor"
        first = page.evaluate(paper)
        assert page.evaluate(CONTRAST) == []
        page.locator("#theme").click()
        assert page.evaluate(paper) != first
        assert page.evaluate(CONTRAST) == []
        page.locator("#theme").click()
        assert page.evaluate(paper) == first

        page.evaluate("document.querySelector('.lead').style.color = 'var(--line)'")
        assert len(page.evaluate(CONTRAST)) == 1  # the kind of error that this test finds


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_fits_the_window(browser: Any, width: int) -> None:
    with opened(browser, viewport={"width": width, "height": 740}, has_touch=width < 500) as page:
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert page.evaluate(OUTSIDE) == []
        for name, value in {
            "size": 24,
            "step": 200,
            "ranks": 16,
            "local": 32,
            "eps": -7.3,
            "x": -6,
            "gamma": -3,
        }.items():
            page.locator(f"#{name}").fill(str(value))
        assert page.evaluate(OUTSIDE) == []
        page.evaluate("document.querySelector('h1').style.width = '2000px'")
        assert len(page.evaluate(OUTSIDE)) == 1  # the kind of error that this test finds


def test_a_finger_drags_a_value_and_the_page_stays(browser: Any) -> None:
    with opened(browser, viewport={"width": 360, "height": 740}, has_touch=True) as page:
        handle = page.get_by_role("slider", name="Rank 0, sample 2, channel C, position 1")
        handle.scroll_into_view_if_needed()
        before, scroll = float(handle.get_attribute("aria-valuenow")), page.evaluate("scrollY")
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        session = page.context.new_cdp_session(page)
        for kind, points in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x, "y": y - 15}]),
            ("touchMove", [{"x": x, "y": y - 40}]),
            ("touchEnd", []),
        ):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert float(handle.get_attribute("aria-valuenow")) > before
        assert page.evaluate("scrollY") == scroll
