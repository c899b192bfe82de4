"""Pages as a parser sees them, and the runs that they show."""

import json
from html.parser import HTMLParser

from PIL import Image

from lit_dola.runs.answers import AnswerRecord
from lit_dola.runs.files import append_line
from tests.support.questions import write_pictures

NASTY = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt;",
    "a 猫 with 🙂 100% #1",
    "قطة حمراء تجلس",
]


class Page(HTMLParser):
    """Tags, attributes and texts of a page, as a browser's parser would have them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, tag, name):
        return [attrs[name] for found, attrs in self.tags if found == tag and name in attrs]


def write_run(folder, prompts, images=2, **settings):
    """The lines that a run leaves."""
    folder.mkdir(exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for index, prompt in enumerate(prompts):
            for image in range(images):
                record = {
                    "file_name": f"{index:05}_p/img_{image:02}.png",
                    "prompt": prompt,
                    "prompt_index": index,
                    "image_index": image,
                    "metadata": {"tag": f"tag-{index}"},
                    "seed": 3,
                    "alpha": 0.1,
                    **settings,
                }
                print(json.dumps(record, ensure_ascii=False), file=file)


def write_images(folder, colour=(0, 0, 0), size=48):
    """An image of one colour for each line of a run."""
    for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines():
        file = folder / json.loads(line)["file_name"]
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (size, size), colour).save(file)


QUESTIONS = ['<script>alert("x")</script>', "猫 100%", "what's #1?\u2028", "a & b"]


def write_answers_run(folder, texts, label="yes", **settings):
    folder.mkdir(parents=True)
    write_pictures(folder.parent)
    for index, text in enumerate(texts):
        entry = {"image": "a.png", "question": QUESTIONS[index % 4], "label": label}
        settings = {"dola": False, "model_path": "m", "seed": 0, **settings}
        record = AnswerRecord(entry, index, ["../a.png"], text, [5, 1], settings)
        append_line(folder / "answers.jsonl", record.to_line())
    return folder
