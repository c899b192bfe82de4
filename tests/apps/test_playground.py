"""The playground in Chromium: draw, move a slider, look at maps, make the same images again."""

import http.client
import json
import shlex
import threading
import urllib.request
from contextlib import suppress
from importlib.util import find_spec

import pytest
import yaml

pytest.importorskip("selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.apps.serving import free_port, serving
from tests.support import forked
from tests.support.browser import chromium, eventually, look, requests
from tests.support.commands import files, records, succeed

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio"),
]


@pytest.fixture(scope="module")
def playground(tmp_path_factory, tiny_checkpoint):
    """A playground whose drawings take a fraction of a second."""
    folder = tmp_path_factory.mktemp("playground")
    with serving(
        folder, "--max_images", "4", "--max_prompt_length", "200", "--model.parallel_size", "2",
        "--model.alpha", "0.1", "--output_dir", "saved", f"--model.model_path={tiny_checkpoint}",
        task="play", ready="/", fork=True,
    ) as running:  # fmt: skip
        running.folder = folder
        yield running


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory):
    """A playground whose drawings take seconds."""
    folder = tmp_path_factory.mktemp("unhurried")
    with serving(
        folder, "--max_queue", "2", "--max_images", "256", "--model.parallel_size", "2",
        task="play", ready="/", fork=True,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def page(playground, browser):
    return visit(playground, browser)


@pytest.fixture
def unhurried_page(unhurried, browser):
    return visit(unhurried, browser)


def visit(playground, browser):
    look(browser, 1280, height=1600)
    browser.get(playground.address)
    eventually(browser, has_prompt)
    return browser


def has_prompt(page):
    return page.find_elements(By.CSS_SELECTOR, "#prompt textarea")


def at(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def fill(page, selector, text):
    field = at(page, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text, Keys.TAB)


def images(page, name):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((image) => image.src)",
        f"#{name} img",
    )


def history(page):
    return [label.text for label in page.find_elements(By.CSS_SELECTOR, "#past label")]


def draw(page, prompt, **settings):
    """Draw, and return the addresses of the images without DoLa and with it."""
    fill(page, "#prompt textarea", prompt)
    for name, value in settings.items():
        fill(page, f"#{name} input[type=number]", str(value))
    before = len(history(page))
    at(page, "#draw").click()
    eventually(page, lambda page: len(history(page)) == before + 1)
    eventually(page, lambda page: "/000" in images(page, "with-dola")[0] or True)
    return images(page, "without"), images(page, "with-dola")


def contents(addresses):
    return [urllib.request.urlopen(address).read() for address in addresses]


def copied(page, button):
    """Press a button that copies, and return what the clipboard has."""
    if not at(page, f"#{button}").is_displayed():
        page.find_element(By.XPATH, "//button[contains(., 'Make these images again')]").click()
        eventually(page, lambda page: at(page, f"#{button}").is_displayed())
    page.execute_script("window.copied = null; document.addEventListener('copy', () => {"
                        "window.copied = document.getSelection().toString(); });")  # fmt: skip
    at(page, f"#{button}").click()
    return eventually(page, lambda page: page.execute_script("return window.copied"))


def made_by(folder, command):
    """Run a command line, and return the content of the images that it makes."""
    words = shlex.split(command)
    assert words[0] == "lit-dola"
    succeed(forked.run(folder, [*words[1:], "--trainer.accelerator", "cpu"]))
    to = folder / words[words.index("--writer.output_dir") + 1]
    return images_in(to)


def images_in(run):
    return [content for name, content in sorted(files(run).items()) if name.endswith(".png")]


def test_a_slider_changes_the_images_with_dola_and_the_command_makes_them_again(page, tmp_path):
    without, with_dola = draw(page, "a red circle above a blue square", seed=3, strength=0.2)
    other_without, other = draw(page, "a red circle above a blue square", seed=3, strength=1)
    assert len(without) == len(with_dola) == len(other) == 2
    assert contents(other) != contents(with_dola)
    pixels = [_pixels(each) for each in (without, other_without)]
    assert pixels[0] == pixels[1]  # DoLa's settings do not touch them
    again, again_without = copied(page, "copy-command").splitlines()
    assert made_by(tmp_path, again) == contents(other)
    assert made_by(tmp_path, again_without) == contents(other_without)
    config = copied(page, "copy-config")
    (tmp_path / "again.yaml").write_text(config, encoding="utf-8")
    assert yaml.safe_load(config)["model"]["strength"] == 1
    made = made_by(tmp_path, "lit-dola predict --config again.yaml --writer.output_dir b")
    assert made == contents(other)


def test_the_contrast_is_chosen_on_the_page(page, tmp_path):
    without, with_dola = draw(page, "a red circle", seed=4, beta=2)
    choices = page.find_elements(By.CSS_SELECTOR, "#contrast label")
    assert [each.text for each in choices] == ["dola", "guide"]
    choices[1].click()
    guided = draw(page, "a red circle", seed=4, beta=2)
    choices[0].click()
    assert _pixels(guided[0]) == _pixels(without)
    assert _pixels(guided[1]) != _pixels(with_dola)
    assert "contrast guide" in history(page)[-1]
    again = copied(page, "copy-command").splitlines()[0]
    assert "--model.contrast guide --model.beta 2" in again
    assert made_by(tmp_path, again) == contents(guided[1])
    assert not any(box.is_displayed() for box in page.find_elements(By.ID, "lens"))


def _pixels(addresses):
    from io import BytesIO

    from PIL import Image

    return [Image.open(BytesIO(content)).tobytes() for content in contents(addresses)]


def test_images_appear_as_their_tokens_come(unhurried_page):
    page = unhurried_page
    page.execute_script(
        """
        window.seen = new Set();
        const look = () => document.querySelectorAll("#without img, #with-dola img").forEach(
          (image) => window.seen.add(image.src));
        new MutationObserver(look).observe(
          document.body, {subtree: true, childList: true, attributes: true});
        """
    )
    drawn = draw(page, "a yellow triangle", images=1)
    seen = page.execute_script("return [...window.seen]")
    seen = [address for address in seen if address.endswith(".png")]  # no icons
    assert len(seen) > 6  # of each image, several previews
    greys = [_grey(address) for address in seen if address not in drawn[0] + drawn[1]]
    rows = greys[: greys.index(0)]
    assert len(rows) > 3
    assert rows == sorted(rows, reverse=True)  # row by row, from above


def _grey(address):
    """Return the share of an image where nothing is drawn yet."""
    (pixels,) = _pixels([address])
    return sum(pixels[place : place + 3] == b"\x80\x80\x80" for place in range(0, len(pixels), 3))


def test_a_click_shows_where_dola_changed_an_image(page):
    draw(page, "a green square left of a red circle", strength=1, alpha=0.1)
    page.find_elements(By.CSS_SELECTOR, "#with-dola img")[1].click()
    eventually(page, lambda page: "changed tokens" in at(page, "#told").text)
    shown = {*images(page, "map")}
    for label in page.find_elements(By.CSS_SELECTOR, "#measure label")[1:]:
        name = label.text.split(",")[0]
        label.click()
        told_of(page, name)
        eventually(page, lambda page: {*images(page, "map")} - shown)  # noqa: B023
        shown |= {*images(page, "map")}
    assert len(shown) == 5
    assert "(dark)" in at(page, "#told").text


def told_of(page, name):
    eventually(page, lambda page: at(page, "#told").text.startswith(name))


def test_a_history_is_saved_as_runs_and_opens_in_compare(page, playground):
    one = {"images": 1, "seed": 1}
    shown = [draw(page, "a blue circle", **one, strength=each) for each in (0.1, 0.9)]
    draw(page, "a blue square", **one)
    page.find_elements(By.CSS_SELECTOR, "#past label")[0].click()
    eventually(page, lambda page: images(page, "with-dola") == shown[0][1])
    at(page, "#save").click()
    links = eventually(page, lambda page: page.find_elements(By.CSS_SELECTOR, "#saved a"))
    assert [link.text for link in links] == ["00_a_blue_circle", "01_a_blue_square"]
    saved = sorted((playground.folder / "saved").glob("history-*"))[-1]
    first = saved / "00_a_blue_circle"
    assert sorted(path.name for path in first.iterdir()) == [
        "0-with", "0-without", "1-with", "compare",
    ]  # fmt: skip
    assert images_in(first / "0-with")[::2] != []
    plain = [content for name, content in sorted(files(first / "1-with").items())
             if name.endswith(".png") and "inspect" not in name]  # fmt: skip
    assert plain == contents(shown[1][1])
    assert [record["strength"] for record in records(first / "1-with")] == [0.9]
    link = links[0].get_attribute("href")
    page.get(link)
    runs = eventually(page, lambda page: page.find_elements(By.CSS_SELECTOR, "img"))
    assert runs
    assert page.execute_script("return document.images[0].naturalWidth") > 0


def test_an_error_is_one_line_on_the_page(page):
    fill(page, "#prompt textarea", "   ")
    at(page, "#draw").click()
    eventually(page, lambda page: "prompt is empty; expected a text" in at(page, "body").text)
    assert len(draw(page, "a red circle")[1]) == 2


def test_stop_ends_a_drawing_and_the_next_one_runs(unhurried_page):
    page = unhurried_page
    fill(page, "#prompt textarea", "a red circle")
    at(page, "#draw").click()
    eventually(page, lambda page: images(page, "without"))
    at(page, "#stop").click()
    eventually(page, lambda page: at(page, "#status").text == "Stopped.")
    assert history(page) == []
    assert len(draw(page, "a red square")[1]) == 2
    assert "a red square" in history(page)[0]


def test_nothing_is_fetched_from_elsewhere(page, playground):
    requests(page)
    page.refresh()
    eventually(page, has_prompt)
    draw(page, "a red circle")
    asked = [url for url in requests(page) if not url.startswith(("data:", "blob:"))]
    assert asked
    assert {url for url in asked if not url.startswith(playground.address)} == set()
    with urllib.request.urlopen(playground.address) as reply:
        assert "default-src 'self'" in reply.headers["Content-Security-Policy"]


def test_a_full_line_says_so_and_a_place_in_it_too(unhurried_page, unhurried):
    page = unhurried_page
    fill(page, "#prompt textarea", "a red circle")
    fill(page, "#images input[type=number]", "256")
    page.get_log("performance")
    at(page, "#draw").click()
    (asked,) = eventually(page, joins)
    stop(page)
    ask_as(unhurried, asked, "second")
    at(page, "#draw").click()
    eventually(page, lambda page: "Waiting: 1 before this one." in at(page, "#status").text)
    stop(page)
    ask_as(unhurried, asked, "third")
    said = "queue full, 2 drawings; try again in a moment"
    eventually(page, lambda page: at(page, "#draw").click() or said in at(page, "body").text)


def stop(page):
    eventually(page, lambda page: at(page, "#status").text)
    at(page, "#stop").click()
    eventually(page, lambda page: at(page, "#status").text == "Stopped.")


def joins(page):
    """What the page has asked the server for, since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [
        event["params"]["request"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and "queue/join" in event["params"]["request"]["url"]
    ]


def ask_as(running, asked, name):
    """Ask for the same as another caller, who goes on listening."""
    body = {**json.loads(asked["postData"]), "session_hash": name}
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(asked["url"], json.dumps(body).encode(), headers)
    ).read()
    address = f"{running.address}/gradio_api/queue/data?session_hash={name}"
    threading.Thread(target=lambda: listen(address), daemon=True).start()


def listen(address):
    with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(address) as events:
        for _ in events:
            pass


def test_it_stops_when_it_is_told(tmp_path, browser, monkeypatch):
    """In the middle of a drawing, too, and leaves no drawing behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with serving(tmp_path, "--max_images", "256", task="play", ready="/") as running:
        page = visit(running, browser)
        fill(page, "#prompt textarea", "a red circle")
        fill(page, "#images input[type=number]", "256")
        at(page, "#draw").click()
        eventually(page, lambda page: at(page, "#status").text)
        (private,) = temporary.glob("lit-dola-play-*")
        assert private.stat().st_mode & 0o777 == 0o700
        assert eventually(page, lambda page: [*private.rglob("*.png")])  # previews
        assert running.stop() == 0
    assert [path for path in temporary.rglob("*") if path.suffix == ".png"] == []
    assert not private.exists()
    said = running.said()
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said


def test_a_port_that_is_taken(playground, tmp_path):
    assert free_port() != playground.port
    done = forked.run(
        tmp_path,
        ["play", "--config", "demo", "--port", playground.port, "--trainer.accelerator", "cpu"],
    )
    assert done.returncode == 1
    assert f"error: port: {playground.port}: Address already in use; expected a free" in done.stderr
    assert "Traceback" not in done.stderr
