"""The page in a real browser: it plays, rewinds, takes a picture, shares a room, fits a phone."""

import contextlib
import shutil

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra web is not installed")

IS_RED = """() => {
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  copy.drawImage(document.getElementById("screen"), 0, 0);
  const [red, green, blue] = copy.getImageData(8, 8, 1, 1).data;
  return red > 240 && green < 20 && blue < 20;
}"""
CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUMS)} is on the path")
    with contextlib.ExitStack() as stack:
        chromium = stack.enter_context(playwright.sync_playwright()).chromium
        # In a container there is no user namespace for the sandbox; the page is our own.
        yield stack.enter_context(contextlib.closing(chromium.launch(executable_path=path, args=["--no-sandbox"])))


@pytest.fixture
def open_page(browser):
    """Opens an address in a browser window of its own; no message may have come to its console in the end."""
    messages = []
    with contextlib.ExitStack() as contexts:

        def open_one(url, **options):
            context = contexts.enter_context(contextlib.closing(browser.new_context(**options)))
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.goto(url)
            return page

        yield open_one
    assert messages == []


def shown_frame(page):
    return int(page.get_attribute("#screen[data-frame]", "data-frame"))


@pytest.mark.browser
def test_a_person_plays_rewinds_and_drops_a_picture(play_server, open_page, tmp_path):
    page = open_page(f"{play_server.url}/")
    page.wait_for_selector(".card")
    assert page.locator(".card").count() == 2
    page.wait_for_function("() => document.querySelectorAll('.card img')[1].naturalWidth === 16")
    page.locator(".card", has_text="Duel").get_by_text("Against a bot").click()
    first = shown_frame(page)
    page.wait_for_function(f"() => document.getElementById('screen').dataset.frame > {first} + 20")
    assert page.locator("#seats").inner_text().split("\n")[:2] == ["left", "you"]
    page.wait_for_selector("#seats li:has-text('played by bot: sticky')")
    page.select_option("#seats select", "human")
    page.wait_for_selector("#seats li:has-text('free')")
    page.select_option("#seats select", "sticky")
    page.wait_for_selector("#seats li:has-text('played by bot: sticky')")

    page.keyboard.down("d")
    page.wait_for_function("() => document.getElementById('latency').textContent !== '–'")
    page.keyboard.up("d")

    page.keyboard.press("p")
    page.wait_for_function("() => document.getElementById('veil').textContent === 'Paused'")
    page.locator("#timeline").evaluate(
        "slider => { slider.value = 3; for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind)); }"
    )
    page.wait_for_function("() => document.getElementById('veil').textContent !== 'Paused'")
    page.click("#snapshot")
    page.locator("#kept button").click()

    Image.new("RGB", (90, 90), (255, 0, 0)).save(tmp_path / "red.png")
    page.keyboard.press("p")
    page.wait_for_function("() => document.getElementById('veil').textContent === 'Paused'")
    page.set_input_files("#file", tmp_path / "red.png")
    page.wait_for_function(IS_RED)


@pytest.mark.browser
def test_two_pages_share_a_room_and_a_third_watches(play_server, open_page):
    first = open_page(f"{play_server.url}/#world=LWM-Duel-v0")
    shown_frame(first)
    second, third = open_page(first.url), open_page(first.url)
    pages = [first, second, third]
    for page in pages:
        shown_frame(page)

    first.wait_for_function("() => document.getElementById('seats').innerText.includes('1 watching')")
    assert [page.locator("#seats li", has_text="you").count() for page in pages] == [1, 1, 0]
    assert max(map(shown_frame, pages)) - min(map(shown_frame, pages)) < 60
    assert third.locator("#pause").is_disabled()


@pytest.mark.browser
def test_the_page_fits_a_phone_and_has_buttons_for_fingers(play_server, open_page):
    phone = {"viewport": {"width": 375, "height": 700}, "has_touch": True, "is_mobile": True}
    page = open_page(f"{play_server.url}/#world=LWM-Tiny-v0", **phone)
    shown_frame(page)

    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator("#pad button").count() == 2
