"""The page in a real browser: it plays, rewinds, takes a picture, shares a room, fits a phone."""

import contextlib
import itertools
import os
import random
import shutil
import statistics

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra web is not installed")

IS_RED = """() => {
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  copy.drawImage(document.getElementById("screen"), 0, 0);
  const [red, green, blue] = copy.getImageData(8, 8, 1, 1).data;
  return red > 240 && green < 20 && blue < 20;
}"""
# Notes when keys go down, when actions leave, which action a frame shows, and when it is on the canvas: milliseconds.
WATCH = """
  const watched = window.watched = { pressed: [], sent: [], shows: {}, drawn: [] };
  addEventListener("keydown", () => watched.pressed.push(performance.now()), true);
  window.WebSocket = class extends WebSocket {
    constructor(...address) {
      super(...address);
      this.addEventListener("message", ({ data }) => {
        if (typeof data === "string") return;
        const header = new DataView(data);
        watched.shows[header.getUint32(4, true)] = header.getUint32(8, true);
      });
    }
    send(text) {
      const message = JSON.parse(text);
      if (message.type === "action") watched.sent.push([message.seq, performance.now()]);
      super.send(text);
    }
  };
  addEventListener("DOMContentLoaded", () => {
    const screen = document.getElementById("screen");
    const note = () => watched.drawn.push([screen.dataset.frame, performance.now()]);
    new MutationObserver(note).observe(screen, { attributeFilter: ["data-frame"] });
  });
"""
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

        def open_one(url, script="", **options):
            context = contexts.enter_context(contextlib.closing(browser.new_context(**options)))
            context.add_init_script(script)
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


@pytest.mark.browser
@pytest.mark.skipif(not os.environ.get("LWM_TIMINGS"), reason="asks for a quiet machine: LWM_TIMINGS=1")
def test_a_key_is_on_the_canvas_in_110_ms_and_frames_are_even(start_server, open_page):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    _, api = start_server(worlds=["LWM-Platformer-v0"], backend="onnx", fps=20)
    page, rng = open_page(f"{api.url}/#world=LWM-Platformer-v0", WATCH), random.Random(0)
    shown_frame(page)
    page.wait_for_timeout(2000)
    begin = page.evaluate("performance.now()")
    for _ in range(60):
        page.keyboard.down("d")
        page.wait_for_timeout(rng.uniform(80, 160))
        page.keyboard.up("d")
        page.wait_for_timeout(rng.uniform(80, 160))
    watched = page.evaluate("watched")

    drawn = [(watched["shows"][frame], at) for frame, at in watched["drawn"] if at >= begin]
    pressed = [at for at in watched["pressed"] if at >= begin]
    sent = [next((seq, at) for seq, at in watched["sent"] if at >= key) for key in pressed]
    assert len(sent) == 60 and max(at - key for (_, at), key in zip(sent, pressed, strict=True)) < 10
    waits = [next(at for acked, at in drawn if acked >= seq) - key for (seq, _), key in zip(sent, pressed, strict=True)]
    between = [after - before for (_, before), (_, after) in itertools.pairwise(drawn)]
    latency, (median, late) = quantile_95(waits), (statistics.median(between), quantile_95(between))
    print(f"key to canvas p95 {latency:.1f} ms; between frames p50 {median:.1f}, p95 {late:.1f} ms")
    assert latency <= 110
    assert late <= 1.25 * median


def quantile_95(values):
    return statistics.quantiles(values, n=20)[-1]
