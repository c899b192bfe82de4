"""The gallery as a file: its content, and prompts that could break out of it."""

import json
import os
import re

import pytest

from lit_dola.reports import gallery
from lit_dola.reports.gallery import write_gallery
from tests.support.pages import NASTY, Page, write_run


@pytest.fixture
def page(tmp_path):
    def of(prompts, **how):
        write_run(tmp_path, prompts, **how)
        write_gallery(tmp_path)
        return Page((tmp_path / "index.html").read_text("utf-8"))

    return of


def test_every_image_is_there_and_is_loaded_lazily(page):
    of = page(["one", "two"])
    files = [f"0000{i}_p/img_0{k}.png" for i in range(2) for k in range(2)]
    assert [src for src in of.attributes("img", "src") if src] == files
    assert of.attributes("a", "href")[1:] == files
    assert of.attributes("img", "loading") == ["lazy"] * 4
    assert all(of.attributes("img", "alt")[:4])


def test_what_a_prompt_says_is_text(page):
    of = page(NASTY)
    assert [text for text in of.texts if text in NASTY] == NASTY
    assert of.attributes("section", "data-text") == [
        f'{i} {prompt} {{"tag": "tag-{i}"}}' for i, prompt in enumerate(NASTY)
    ]
    # The settings, the flags, and the page's own
    assert len([tag for tag, _ in of.tags if tag == "script"]) == 3
    assert not any(name.startswith("on") for _, attrs in of.tags for name in attrs)


def test_settings_of_a_prompt_cannot_end_the_script(page):
    of = page(["a"], note="</script><script>alert(1)</script>")
    assert len([tag for tag, _ in of.tags if tag == "script"]) == 3


def test_names_of_files_are_addresses(tmp_path):
    write_run(tmp_path, ["a"], images=1, file_name="00000_a#1_100%_猫/img_00.png")
    write_gallery(tmp_path)
    of = Page((tmp_path / "index.html").read_text("utf-8"))
    assert "00000_a%231_100%25_%E7%8C%AB/img_00.png" in of.attributes("img", "src")


def test_common_settings_stand_once_and_others_with_their_image(tmp_path):
    write_run(tmp_path, ["a", "b"], images=1)
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "alpha": 0.2})
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    write_gallery(tmp_path)
    text = (tmp_path / "index.html").read_text()
    settings = re.search(r'id="settings">(.*?)</script>', text)[1]
    assert json.loads(settings) == {"seed": 3}
    assert [json.loads(own) for own in Page(text).attributes("a", "data-own")] == [
        {"alpha": 0.1}, {"alpha": 0.2},
    ]  # fmt: skip


def test_passes_are_told_on_average_and_by_image(tmp_path):
    write_run(tmp_path, ["a", "b"], images=2)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").open()]
    for line, forwards in zip(lines, [20, 31, 45]):  # the last one was made without a window
        line["forwards"] = forwards
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_gallery(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "4 images. 32.0 passes per image on average." in text
    assert [json.loads(own) for own in Page(text).attributes("a", "data-own")] == [
        {"forwards": 20}, {"forwards": 31}, {"forwards": 45},
    ]  # fmt: skip


def test_without_a_window_nothing_is_said_of_passes(page):
    assert not any("passes" in text for text in page(["a"]).texts)


def test_a_large_run_goes_on_on_another_page(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "IMAGES_PER_PAGE", 4)
    write_run(tmp_path, list("abcde"), images=2)
    (tmp_path / "index-9.html").touch()  # left by a longer run
    write_gallery(tmp_path)
    pages = {path.name: Page(path.read_text()) for path in tmp_path.glob("index*.html")}
    assert sorted(pages) == ["index-2.html", "index-3.html", "index.html"]
    shown = [src for of in (pages["index.html"], pages["index-2.html"], pages["index-3.html"])
             for src in of.attributes("img", "src") if src]  # fmt: skip
    assert shown == [f"0000{i}_p/img_0{k}.png" for i in range(5) for k in range(2)]
    assert "index-3.html" in pages["index.html"].attributes("a", "href")


def test_a_run_without_images_has_a_page(tmp_path):
    write_gallery(tmp_path, num_failures=2)
    text = (tmp_path / "index.html").read_text()
    assert "no images yet" in text
    assert "2 skipped" in text


def test_nothing_is_asked_of_the_network(page):
    of = page(["a"])
    addresses = of.attributes("img", "src") + of.attributes("a", "href")
    assert not any("//" in address for address in addresses)
    assert not of.attributes("script", "src")
    assert of.attributes("link", "href") == ["data:,"]


@pytest.fixture
def written(monkeypatch):
    """Note the names of the pages that are written."""
    names = []
    write_page = gallery.write_page

    def note(path, *args, **content):
        names.append(path.name)
        write_page(path, *args, **content)

    monkeypatch.setattr(gallery, "write_page", note)
    return names


@pytest.fixture
def three_pages(tmp_path, monkeypatch, written):
    monkeypatch.setattr(gallery, "IMAGES_PER_PAGE", 2)
    write_run(tmp_path, ["a", "b", "c"])
    write_gallery(tmp_path)
    assert written == ["index.html", "index-2.html", "index-3.html"]
    written.clear()
    return tmp_path


def pages_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.html")}


def later(path):
    """Let a file be a second younger than all others."""
    newest = max(other.stat().st_mtime for other in path.parent.iterdir())
    os.utime(path, (newest + 1, newest + 1))


def test_where_nothing_changed_no_record_is_read(three_pages, written, monkeypatch):
    before = pages_of(three_pages)
    monkeypatch.setattr(gallery.RecordLog, "merged", None)
    write_gallery(three_pages)
    assert written == []
    assert pages_of(three_pages) == before


def test_only_pages_that_changed_are_written(three_pages, written):
    log = three_pages / "metadata.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[2]["metadata"] = {"tag": "new"}  # of the second prompt
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    later(log)
    write_gallery(three_pages)
    assert written == ["index-2.html"]
    changed = pages_of(three_pages)
    for page in three_pages.glob("*.html"):
        page.unlink()
    write_gallery(three_pages)
    assert pages_of(three_pages) == changed  # as if written for the first time


def test_records_that_were_only_touched_change_no_page(three_pages, written):
    later(three_pages / "metadata.jsonl")
    write_gallery(three_pages)
    assert written == []
    write_gallery(three_pages)  # from now on the gallery is the younger one
    assert written == []


@pytest.mark.parametrize("what", ["best", "failures", "version", "setting", "one more", "deleted"])
def test_what_else_changes_pages(three_pages, written, monkeypatch, what):
    log, failures, expected = three_pages / "metadata.jsonl", 0, 3
    if what == "best":
        best = {"prompts": {"0": {"best": "00000_p/img_00.png"}}}
        (three_pages / "best.json").write_text(json.dumps(best))
        later(three_pages / "best.json")
    elif what == "failures":
        (three_pages / "errors.jsonl").write_text("{}\n")
        later(three_pages / "errors.jsonl")
        failures = 1
    elif what == "version":
        monkeypatch.setattr(gallery, "template_digest", lambda: "0" * 16)
    elif what == "setting":  # of all images: it stands on every page
        log.write_text(log.read_text().replace('"alpha": 0.1', '"alpha": 0.3'))
        later(log)
    elif what == "one more":  # the navigation of all pages gets longer
        write_run(three_pages, ["a", "b", "c", "d"])
        later(log)
        expected = 4
    else:
        (three_pages / "index-2.html").unlink()
        expected = 1
    before = pages_of(three_pages)
    write_gallery(three_pages, failures)
    assert len(written) == expected
    assert pages_of(three_pages) != before


@pytest.mark.parametrize("what", ["errors", "best"])
def test_pages_forget_what_is_gone(three_pages, written, what):
    before = pages_of(three_pages)
    best = three_pages / "best.json"
    if what == "best":
        best.write_text(json.dumps({"prompts": {"0": {"best": "00000_p/img_00.png"}}}))
    write_gallery(three_pages, num_failures=2 if what == "errors" else 0)
    assert len(written) == 3
    best.unlink(missing_ok=True)
    write_gallery(three_pages)
    assert pages_of(three_pages) == before
