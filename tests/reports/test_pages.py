"""The pages in a real browser, opened from files."""

import json
import shlex
import shutil
from contextlib import contextmanager
from io import BytesIO

import pytest
from PIL import Image
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from lit_dola.reports.answers import write_answers
from lit_dola.reports.compare import compare
from lit_dola.reports.gallery import write_gallery
from lit_dola.reports.report import write_report
from lit_dola.reports.scores import Report, Score
from tests.support import forked
from tests.support.browser import chromium, eventually, look, requests
from tests.support.commands import CPU
from tests.support.pages import NASTY, write_answers_run, write_images, write_run

pytestmark = pytest.mark.browser

COLOURS = {"baseline": (200, 30, 30), "dola": (30, 30, 200), "again": (200, 30, 30)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("downloads")) as page:
        yield page


def wait_until_read(page):
    """On a busy machine, the driver may return before a page is read to its end."""
    whole = "return document.readyState == 'complete'"
    eventually(page, lambda page: page.execute_script(whole))


@contextmanager
def visits(browser):
    """Open pages; at the end check that there was no error and no request except for files."""

    def open_page(path, width=1280, dark=False, fragment=""):
        requests(browser)
        look(browser, width, dark)
        browser.get("about:blank")  # or a page of which only the fragment changes would stay
        browser.get(path.as_uri() + fragment)
        wait_until_read(browser)
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    asked = requests(browser)
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture
def visit(browser):
    with visits(browser) as open_page:
        yield open_page


def in_new_browsers(folder, scenario, tries=3):
    """Run a scenario about stored votes until it works: the storage of a busy Chromium may fail.

    Once it has, nothing that the browser's pages store comes back, so only a new one helps.
    """
    for number in range(1, tries + 1):
        downloads = folder / f"browser-{number}"
        downloads.mkdir()
        with chromium(downloads) as page, visits(page) as visit:
            try:
                scenario(visit)
                return
            except TimeoutException:
                if number == tries:
                    raise


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the same prompts: one red, one blue, and one red again."""
    folder = tmp_path_factory.mktemp("runs")
    for name, colour in COLOURS.items():
        write_run(folder / name, NASTY, images=2, dola=name == "dola")
        write_images(folder / name, colour)
        write_gallery(folder / name)
    compare([folder / name for name in COLOURS], folder / "page", seed=5)
    return folder


def described(page, selector):
    """What a list of names and values says."""
    found = find(page, selector).text.splitlines()
    return dict(zip(found[::2], found[1::2]))


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def find_all(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def shown_prompts(page):
    return [text.text for text in find_all(page, ".prompt h2 [dir]") if text.is_displayed()]


def fits_the_window(page):
    return page.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def background(page):
    return page.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_prompts_are_shown_as_text(visit, runs):
    page = visit(runs / "dola/index.html")
    assert shown_prompts(page) == NASTY
    directions = page.execute_script(
        "return [...document.querySelectorAll('h2 [dir]')].map(e => e.matches(':dir(rtl)'))"
    )
    assert directions == [False] * 5 + [True]


def test_images_load(visit, runs):
    page = visit(runs / "dola/index.html")
    image = find(page, ".images img")
    width = "return arguments[0].naturalWidth"
    assert eventually(page, lambda page: page.execute_script(width, image)) == 48


def test_search(visit, runs):
    page = visit(runs / "dola/index.html")
    find(page, "body").send_keys("/")  # the key that moves to the search
    page.switch_to.active_element.send_keys("猫 100%")
    assert shown_prompts(page) == [NASTY[4]]
    assert find(page, "#found").text == "1 of 6 prompts"
    box = find(page, "#search")
    assert not find(page, "#none").is_displayed()
    box.send_keys(" nothing")  # every word must match
    assert shown_prompts(page) == []
    assert find(page, "#none").text == "No prompt matches."
    box.clear()
    box.send_keys("TAG-1")  # metadata is searched, too
    assert shown_prompts(page) == [NASTY[1]]


def test_viewer_with_the_keyboard_alone(visit, runs):
    page = visit(runs / "dola/index.html")
    first = find(page, ".images a")
    page.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ENTER)
    assert find(page, "#viewer").is_displayed()
    main = described(page, "#viewer-main")
    assert main == {
        "dola": "true", "alpha": "0.1", "seed": "3", "prompt_index": "0", "image_index": "0"
    }  # fmt: skip
    find(page, ".viewer details summary").click()
    assert described(page, "#viewer-rest") == {"file": "00000_p/img_00.png", "tag": "tag-0"}
    assert find(page, "#viewer-place").text == "1 of 12"
    assert not find(page, "#previous").is_enabled()
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert find(page, "#viewer-prompt").text == NASTY[1]
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert find(page, "#viewer-prompt").text == NASTY[0]
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not find(page, "#viewer").is_displayed()
    last = find_all(page, ".images a")[1]  # of the first prompt
    assert last.get_attribute("href").endswith("00000_p/img_01.png")
    eventually(page, lambda page: page.switch_to.active_element == last)  # where the viewer was


@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_and_follow_the_colour_scheme(visit, runs, width):
    for path in ("dola/index.html", "page/index.html"):
        colours = set()
        for dark in (False, True):
            page = visit(runs / path, width, dark)
            assert fits_the_window(page), path
            colours.add(background(page))
        assert len(colours) == 2


def test_everything_that_is_to_be_used_has_a_name(visit, runs):
    for path in ("dola/index.html", "page/index.html"):
        page = visit(runs / path)
        named = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "link", "searchbox", "slider", "combobox", "image", "spinbutton"}
        nodes = [node for node in named if node.get("role", {}).get("value") in roles]
        assert len(nodes) > 10
        assert all(node["name"]["value"] for node in nodes)


def test_settings_without_a_meaning_are_not_shown(visit, runs):
    page = visit(runs / "baseline/index.html")
    find(page, ".images a").click()
    assert "alpha" not in find(page, "#viewer").text
    assert described(page, "#viewer-main")["dola"] == "false"


@pytest.mark.parametrize("images", [1, 3, 4, 8, 9])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_images_fill_the_width(visit, tmp_path, images, width):
    """Every row but the last is full, and the last has at least half as many."""
    write_run(tmp_path, ["a"], images=images)
    write_images(tmp_path)
    write_gallery(tmp_path)
    page = visit(tmp_path / "index.html", width)
    boxes = [image.rect for image in find_all(page, ".images img")]
    rows = [sum(box["y"] == y for box in boxes) for y in sorted({box["y"] for box in boxes})]
    assert all(row == rows[0] for row in rows[:-1])
    assert rows[-1] >= rows[0] / 2
    right = max(box["x"] + box["width"] for box in boxes)
    shown = find(page, ".prompt").rect
    assert all(box["width"] <= 400 for box in boxes)
    assert right > shown["x"] + shown["width"] - 2 or boxes[0]["width"] > 370  # as drawn


@pytest.mark.slow
def test_the_copied_command_makes_the_same_image(visit, tiny_checkpoint, tmp_path):
    """Whatever the prompt, for a shell; also where a checkpoint recommends something."""
    prompts = ["a", "it's {\"3\": 'x'} \\ $HOME: `ls` \n猫 --x=1 \x85 \x7f \ufffe", "b"]
    (tmp_path / "prompt.json").write_text(json.dumps(prompts))
    args = [
        "predict", *CPU, f"--model.model_path={tiny_checkpoint}", "--model.parallel_size=2",
        "--model.layer_ratio=0.5", "--model.temperature=0.7", "--model.top_k=9",
        "--writer.output_dir=run/one",
    ]  # fmt: skip
    for number, more in enumerate(
        (["--model.dola=false", "--model.negative_prompt=1e3"], ["--writer.format=png"])
    ):
        done = forked.run(tmp_path, [*args, *more, f"--writer.output_dir=run/{number}"])
        assert done.returncode == 0, done.stderr
        page = visit(tmp_path / f"run/{number}/index.html")
        find_all(page, ".images a")[3].click()
        command = page.execute_script(
            "return document.getElementById('viewer-command').textContent"
        )
        page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
        find(page, "#copy-command").click()
        eventually(page, lambda page: find(page, "#copy-command").text == "Copied")
        program, *again = shlex.split(command)
        assert program == "lit-dola"
        done = forked.run(tmp_path, [*again, "--trainer.accelerator=cpu", "--trainer.devices=1"])
        assert done.returncode == 0, done.stderr
        (made,) = tmp_path.glob("outputs/again/*/img_*")
        first = tmp_path / f"run/{number}" / made.relative_to(tmp_path / "outputs/again")
        assert made.read_bytes() == first.read_bytes()
        shutil.rmtree(tmp_path / "outputs")


def test_an_inspection_enlarges_on_a_click(visit, tmp_path):
    write_run(tmp_path, ["a"], images=1, inspection="00000_p/plot.png")
    write_images(tmp_path)
    Image.new("RGB", (1050, 760)).save(tmp_path / "00000_p/plot.png")
    write_gallery(tmp_path)
    page = visit(tmp_path / "index.html")
    find(page, ".images a").click()
    plot = find(page, "#viewer-inspection")
    image = plot.find_element(By.CSS_SELECTOR, "img")
    small = eventually(page, lambda page: image.rect["width"])
    plot.click()
    eventually(page, lambda page: image.rect["width"] > 2 * small)
    assert plot.get_attribute("aria-expanded") == "true"
    plot.click()
    eventually(page, lambda page: image.rect["width"] == small)


def test_ten_thousand_images(visit, tmp_path):
    write_run(tmp_path, [f"prompt number {i}" for i in range(2500)], images=4)
    Image.new("RGB", (48, 48)).save(tmp_path / "img.png")
    for line in (tmp_path / "metadata.jsonl").read_text().splitlines():
        file = tmp_path / json.loads(line)["file_name"]
        file.parent.mkdir(exist_ok=True)
        file.hardlink_to(tmp_path / "img.png")
    write_gallery(tmp_path)
    page = visit(tmp_path / "index.html")
    images = "[...document.images].filter(image => image.src)"
    assert page.execute_script(f"return {images}.length") == 10_000
    # Only images near the window are loaded.
    assert 0 < page.execute_script(f"return {images}.filter(i => i.complete).length") < 500
    find(page, "#search").send_keys("2499")
    assert find(page, "#found").text == "1 of 2500 prompts"
    assert find(page, ".prompt:not([hidden]) h2 [dir]").text == "prompt number 2499"


def choose(page, view):
    Select(find(page, "#view")).select_by_value(view)


def test_side_by_side(visit, runs):
    page = visit(runs / "page/index.html")
    left, right = find_all(page, ".row figure")[:2]
    assert left.text == "baseline"
    assert right.text == "dola"
    assert left.rect["y"] == right.rect["y"]
    assert shown_prompts(page) == NASTY


def pixel(page, image, share=0.5):
    """RGB of the pixel shown at a distance from an image's left edge."""
    box = image.rect
    x, y = box["x"] + share * box["width"], box["y"] + box["height"] / 2
    with Image.open(BytesIO(page.get_screenshot_as_png())) as shot:
        return shot.convert("RGB").getpixel((int(x), int(y)))


def colour_at(page, image, share):
    """The colour shown at a place in an image: red or blue."""
    red, _, blue = pixel(page, image, share)
    return "red" if red > blue else "blue"


def test_slider(visit, runs):
    page = visit(runs / "page/index.html")
    choose(page, "slider")
    image = find(page, ".row img")

    def shows(colours):
        return {share: colour_at(page, image, share) for share in colours} == colours

    eventually(page, lambda page: shows({0.25: "red", 0.75: "blue"}))
    find(page, "#split").send_keys(Keys.HOME)
    eventually(page, lambda page: shows({0.25: "blue"}))
    find(page, "#split").send_keys(Keys.END)
    eventually(page, lambda page: shows({0.75: "red"}))
    box = image.rect
    ActionChains(page).move_to_element_with_offset(image, int(0.3 * box["width"]), 0).perform()
    eventually(page, lambda page: shows({0.7: "red", 0.95: "blue"}))


def test_difference(visit, runs):
    page = visit(runs / "page/index.html")
    choose(page, "difference")
    image = find(page, ".row img")
    find(page, "#gain").send_keys(Keys.HOME)
    eventually(page, lambda page: pixel(page, image) == (170, 0, 170))
    Select(find(page, "#b")).select_by_visible_text("again")
    eventually(page, lambda page: pixel(page, image) == (0, 0, 0))
    Select(find(page, "#a")).select_by_visible_text("again")  # not with itself: the two swap
    assert Select(find(page, "#b")).first_selected_option.text == "baseline"


def test_the_slider_opens_where_the_images_differ(visit, tmp_path):
    for name in "one", "two":
        write_run(tmp_path / name, ["a"], images=2, dola=name == "two")
        write_images(tmp_path / name, (200, 200, 200))
    path = tmp_path / "two/00000_p/img_00.png"
    with Image.open(path) as image:
        image.paste((0, 0, 0), (30, 10, 42, 20))  # from 62 to 88 % of the width
        image.save(path)
    compare([tmp_path / "one", tmp_path / "two"], tmp_path / "page")
    page = visit(tmp_path / "page/index.html", fragment="#view=slider")
    at = "return getComputedStyle(arguments[0]).getPropertyValue('--at')"
    first, second = find_all(page, ".row")
    assert page.execute_script(at, first) == "75%"
    assert page.execute_script(at, second) == "50%"  # no difference
    line = page.execute_script(
        "const frame = document.querySelector('.b .frame');"
        "const line = getComputedStyle(frame, '::after');"
        "return [parseFloat(line.height), frame.firstElementChild.offsetHeight]"
    )
    assert line[0] == pytest.approx(line[1], abs=1)  # it ends with the image


def test_the_view_is_kept_over_a_reload(visit, runs):
    page = visit(runs / "page/index.html")
    assert Select(find(page, "#view")).first_selected_option.text == "Side by side"
    choose(page, "difference")
    Select(find(page, "#b")).select_by_visible_text("again")
    find(page, "#gain").send_keys(Keys.END)
    assert "13 % of the scale" in find(page, ".legend").text
    page.refresh()
    wait_until_read(page)
    assert Select(find(page, "#view")).first_selected_option.text == "Difference"
    assert Select(find(page, "#b")).first_selected_option.text == "again"
    assert find(page, "#gain").get_attribute("value") == "8"
    assert find(page, "main").is_displayed()


@pytest.mark.parametrize("address", ["view=nothing&a=99", "a=1&b=1", "%%%", "gain=x&seed=-1"])
def test_an_address_that_is_wrong_is_no_error(visit, runs, address):
    page = visit(runs / "page/index.html", fragment=f"#{address}")
    assert len({find(page, f"#{name}").get_attribute("value") for name in "ab"}) == 2
    assert find(page, "body").get_attribute("data-view") == "side"


def wait_for_progress(page, text):
    eventually(page, lambda page: find(page, "#progress").text == text, seconds=30)


def choose_blind(page, seed):
    choose(page, "blind")
    field = find(page, "#seed")
    field.clear()
    field.send_keys(seed, Keys.TAB)


def test_votes_of_two_tabs_add_up(runs, tmp_path):
    def scenario(visit):
        page = visit(runs / "page/index.html")
        first, address = page.current_window_handle, page.current_url
        choose_blind(page, "77")
        page.switch_to.new_window("tab")
        page.get(address)
        wait_until_read(page)
        choose_blind(page, "77")
        cast(page, "/dola/")
        page.switch_to.window(first)
        wait_for_progress(page, "1 of 12 votes cast")
        cast(page, "/dola/")
        page.switch_to.window(page.window_handles[1])
        wait_for_progress(page, "2 of 12 votes cast")
        page.close()
        page.switch_to.window(first)

    in_new_browsers(tmp_path, scenario)


def cast(page, better):
    """Vote for the image of a colour in the blind view; returns its side."""
    for side in ("left", "right"):
        if better in find(page, f"#{side} img").get_attribute("src"):
            find(page, f"#{side}").click()
            return side
    raise AssertionError(better)


def votes_are_there(page):
    page.refresh()
    wait_until_read(page)
    choose(page, "blind")
    return find(page, "#progress").text == "10 of 12 votes cast"


def test_blind_votes(runs, tmp_path):
    in_new_browsers(tmp_path, lambda visit: blind_votes(visit, runs))


def blind_votes(visit, runs):
    page = visit(runs / "page/index.html")
    choose(page, "blind")
    assert not find(page, "main").is_displayed()
    assert "dola" not in find(page, "#blind").text
    sides = {cast(page, "/dola/") for _ in range(8)}
    assert sides == {"left", "right"}
    cast(page, "/baseline/")
    ActionChains(page).send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT, "u").perform()  # a tie
    assert find(page, "#progress").text == "10 of 12 votes cast"

    eventually(page, votes_are_there, seconds=30)  # they persist
    assert not find(page, "#result").is_displayed()
    assert "baseline" not in find(page, "#blind").text
    find(page, "#end").click()
    # Wilson's interval of 8 in 9, from a table: 0.565 to 0.980
    assert "88.9 % of those decided, 95 % interval 56.5 % to 98.0 %" in find(page, "#result").text

    find(page, "#export").click()
    exported = page.downloads / "votes.json"
    eventually(page, lambda page: exported.exists())
    votes = json.loads(exported.read_text("utf-8"))
    assert [run["name"] for run in votes["runs"]] == ["baseline", "dola"]
    assert votes["runs"][1]["settings"]["dola"] is True
    assert votes["seed"] == 5
    assert votes["pairs"] == 12
    assert [vote["winner"] for vote in votes["votes"]] == ["dola"] * 8 + ["baseline", None]
    assert all(vote["prompt"] == NASTY[vote["prompt_index"]] for vote in votes["votes"])
    summary = votes["summary"]
    assert (summary["wins_a"], summary["wins_b"], summary["ties"]) == (1, 8, 1)
    assert summary["low"] == pytest.approx(0.565, abs=5e-4)

    find(page, "#end").click()  # no, go on
    assert not find(page, "#result").is_displayed()
    for _ in range(2):
        cast(page, "/dola/")
    assert find(page, "#result").is_displayed()  # every pair has a vote
    assert page.switch_to.active_element == find(page, "#result")
    assert not find(page, "#left").is_displayed()
    find(page, "#undo").click()
    assert not find(page, "#result").is_displayed()

    seed = find(page, "#seed")
    seed.clear()
    seed.send_keys("6", Keys.TAB)  # another shuffle, with its own votes
    assert find(page, "#progress").text == "0 of 12 votes cast"


def test_a_browser_that_keeps_nothing_still_counts_votes_and_says_so(visit, runs, browser):
    refuse = "Storage.prototype.setItem = () => { throw new DOMException('no') }"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    page = visit(runs / "page/index.html")
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    choose(page, "blind")
    seed = find(page, "#seed")
    seed.clear()
    seed.send_keys("9", Keys.TAB)
    find(page, "#left").click()
    assert find(page, "#progress").text.startswith(
        "1 of 12 votes cast. This browser does not store"
    )


def test_answers_can_be_searched_and_only_wrong_ones_shown(visit, tmp_path):
    one = write_answers_run(tmp_path / "one", ["Yes", "No", "yes", "no"])
    two = write_answers_run(tmp_path / "two", ["Yes", "Yes", "yes", "no"], dola=True)
    write_answers(one)
    for width in (360, 1280):
        page = visit(one / "index.html", width)
        assert fits_the_window(page)
    assert find(page, "#found").text == "4 of 4 questions"
    picture = find(page, ".pictures img")
    width = "return arguments[0].naturalWidth"
    assert eventually(page, lambda page: page.execute_script(width, picture)) == 200
    Select(find(page, "#show")).select_by_value("wrong")
    eventually(page, lambda page: find(page, "#found").text == "2 of 4 questions")
    assert [text.text for text in find_all(page, ".prompt h2 [dir]") if text.is_displayed()] == [
        "猫 100%", "a & b"
    ]  # fmt: skip
    find(page, "#search").send_keys("猫")
    eventually(page, lambda page: find(page, "#found").text == "1 of 4 questions")
    compare([one, two], tmp_path / "page")
    page = visit(tmp_path / "page/index.html")
    Select(find(page, "#show")).select_by_value("differs")
    eventually(page, lambda page: find(page, "#found").text == "1 of 4 questions")
    nodes = eventually(page, lambda page: len(found := named_nodes(page)) > 3 and found)
    assert all(node["name"]["value"] for node in nodes)


def named_nodes(page):
    """What a screen reader should be able to name; the tree follows the page a little later."""
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"link", "searchbox", "combobox", "image"}
    return [node for node in nodes if node.get("role", {}).get("value") in roles]


def test_the_best_images_alone(visit, tmp_path):
    write_run(tmp_path, NASTY[:2], images=3)
    write_images(tmp_path, (200, 30, 30))
    files = [
        json.loads(line)["file_name"]
        for line in (tmp_path / "metadata.jsonl").read_text().splitlines()
    ]
    best = {"prompts": {"0": {"best": files[1]}, "1": {"best": files[3]}}}
    (tmp_path / "best.json").write_text(json.dumps(best))
    write_gallery(tmp_path)
    page = visit(tmp_path / "index.html")

    def shown():
        return [image for image in find_all(page, ".images img") if image.is_displayed()]

    assert len(shown()) == 6
    find(page, "#best").click()
    eventually(page, lambda page: len(shown()) == 2)
    assert all("the best" in image.get_attribute("alt") for image in shown())
    find(page, "#best").click()
    eventually(page, lambda page: len(shown()) == 6)


def figure_is_drawn(page):
    return page.execute_script("return document.querySelector('.figure').naturalWidth") > 300


@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_of_an_evaluation(visit, tmp_path, width):
    found = {
        name: [Score(skill, i, 0, float(i % 3 < 2)) for skill in NASTY for i in range(6)]
        for name in COLOURS
    }
    for name in COLOURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text("<title>x</title>")
    changes = {name: {"alpha": 0.1, "note": "x" * 200} for name in COLOURS}
    links = {name: f"{name}/index.html" for name in COLOURS}
    write_report(tmp_path, Report(found, "baseline", changes, {}, {}), links)
    colours = set()
    for dark in (False, True):
        page = visit(tmp_path / "index.html", width, dark)
        assert fits_the_window(page)
        colours.add(background(page))
        eventually(page, figure_is_drawn)
    assert len(colours) == 2
    find(page, ".links a:nth-child(2)").click()
    eventually(page, lambda page: page.current_url.endswith("/dola/index.html"))
