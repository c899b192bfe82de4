"""Files of requests as OpenAI's batch interface takes them, and the files of its results."""

import json
from base64 import b64decode
from itertools import product

import pytest

from lit_dola.data.prompt_file import read_prompts
from lit_dola.data.requests import EncodedPrompt, Entry, ImageRequests, RequestKey
from lit_dola.errors import UserError
from tests.support.commands import CPU, messages, one_line, records, succeed


def request(name, **body):
    """A line as OpenAI's guide has it."""
    return {
        "custom_id": name, "method": "POST", "url": "/v1/images/generations",
        "body": {"model": "gpt-image-1", **body},
    }  # fmt: skip


def write(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_what_an_entry_becomes(tmp_path):
    lines = [request("a", prompt="a cat", n=3, seed=5, size="auto"), request("b", prompt=" a dog ")]
    first, second = read_prompts(write(tmp_path / "requests.jsonl", lines))
    assert (first.text, first.count) == ("a cat", 3)
    assert first.metadata == {
        "custom_id": "a", "model": "gpt-image-1", "n": 3, "seed": 5, "size": "auto"
    }  # fmt: skip
    assert (second.text, second.count) == ("a dog", 1)


@pytest.mark.parametrize(
    "entry", [{"prompt": "a", "custom_id": "x"}, {"prompt": "a", "body": {"n": 2}}], ids=str
)
def test_other_entries_are_no_requests(entry, tmp_path):
    (found,) = read_prompts(write(tmp_path / "prompts.jsonl", [entry]))
    assert found.count is None


BAD = [
    ([request("a", prompt="a"), request("a", prompt="b")], "line 2: custom_id 'a' occurs twice; "),
    ([request("", prompt="a")], "line 1: custom_id is empty; expected a text, different in each"),
    ([request(3, prompt="a")], "line 1: custom_id is a number; expected a text, different in each"),
    ([request("a")], "line 1: no prompt among "),
    ([request("a", prompt=["a"])], "line 1: prompt is a list"),
    ([{**request("a", prompt="a"), "url": "/v1/chat/completions"}],
     "line 1: url is '/v1/chat/completions'; expected /v1/images/generations"),
    *[([request("a", prompt="a", n=n)], f"line 1: n is {n!r}; expected an integer, 1 to 1024")
      for n in (0, 1025, 2.0, "2", True)],
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), BAD)
def test_bad_requests(lines, message, tmp_path):
    path = write(tmp_path / "requests.jsonl", lines)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    skipped = []
    good = request("good", prompt="a")
    write(path, [*lines, good])
    assert [it.metadata["custom_id"] for it in read_prompts(path, skipped)][-1] == "good"
    name = lines[-1]["custom_id"]
    assert [failure.custom_id for failure in skipped] == [name if isinstance(name, str) else None]


def test_each_prompt_has_its_own_images():
    counts = [None, 3, 0, 1, None, 5]
    prompts = [
        EncodedPrompt(Entry(index, "a", {}), [1], images=None if n is None else range(n))
        for index, n in enumerate(counts)
    ]
    requests = ImageRequests(prompts, [0, 4])
    expected = [
        RequestKey(index, image)
        for index, n in enumerate(counts)
        for image in ([0, 4] if n is None else range(n))
    ]
    assert [it.key for it in requests] == expected
    assert [requests[place].key for place in range(len(requests))] == expected
    assert [it.key for it in requests[2:9:3]] == expected[2:9:3]
    assert requests[-1].key == expected[-1]
    firsts = [requests[start].key.entry_index for start in requests.starts]
    assert firsts == [0, 1, 3, 4, 5]


LINES = [
    request("cat", prompt="a cat", n=3, seed=5, size="1024x1024", quality="high"),
    request("dog", prompt="a dog"),
    request("bad", prompt=""),
    request("bird", prompt="a bird", n=2, negative_prompt="grey", alpha=0.3),
]


@pytest.fixture
def predict(main_here, tmp_path, tiny_checkpoint):
    write(tmp_path / "requests.jsonl", LINES)

    def run(*args, task="predict"):
        return main_here(
            tmp_path, task, *CPU, f"--model.model_path={tiny_checkpoint}",
            "--model.parallel_size=7", "--data.prompt_json=requests.jsonl",
            "--writer.output_dir=out", *args,
        )  # fmt: skip

    run.main = lambda *args: main_here(tmp_path, *args)
    return run


@pytest.mark.slow
def test_a_job_of_the_batch_interface(predict, tmp_path):
    done = predict("--data.on_error=skip", "--trainer.limit_predict_batches=1",
                   "--model.images_per_batch=2")  # fmt: skip
    assert done.returncode == 1
    done = predict("--data.on_error=skip")
    assert done.returncode == 3
    assert messages(done.stderr).splitlines()[0] == (
        "WARNING: requests.jsonl: requests have alpha and quality and size, kept as metadata only"
    )
    lines = records(tmp_path / "out")
    images = [("cat", range(3)), ("dog", range(1)), ("bird", range(2))]
    keys = [(name, image) for name, own in images for image in own]
    assert [(it["metadata"]["custom_id"], it["image_index"]) for it in lines] == keys
    assert {it["seed"] for it in lines[:3]} == {5}
    assert {it["seed"] for it in lines[3:]} == {0}
    assert [it["negative_prompt"] for it in lines] == [None] * 4 + ["grey"] * 2
    assert "nothing to do" in predict("--data.on_error=skip").stderr
    succeed(predict.main("export", "openai-batch", "out", "--output=results"))
    openai = pytest.importorskip("openai")
    found = [json.loads(line) for line in (tmp_path / "results/output.jsonl").open()]
    assert [line["custom_id"] for line in found] == ["cat", "dog", "bird"]
    files = iter(lines)
    for line, (_, own) in zip(found, images):
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        reply = openai.types.ImagesResponse.model_validate(line["response"]["body"])
        assert len(reply.data) == len(own)
        assert reply.output_format == "jpeg"
        for image in reply.data:
            content = (tmp_path / "out" / next(files)["file_name"]).read_bytes()
            assert b64decode(image.b64_json) == content
    (error,) = map(json.loads, (tmp_path / "results/error.jsonl").open())
    assert (error["custom_id"], error["response"]) == ("bad", None)
    assert error["error"]["message"] == "line 3: prompt is empty; expected a text"


@pytest.mark.slow
def test_only_some_images_of_each(predict, tmp_path):
    predict("--data.on_error=skip", "--data.images=[1, 2]")
    keys = [(it["metadata"]["custom_id"], it["image_index"]) for it in records(tmp_path / "out")]
    assert keys == [("cat", 1), ("cat", 2), ("bird", 1)]


@pytest.mark.slow
def test_a_run_of_other_prompts(predict, tmp_path):
    succeed(predict("--data.prompts=a cat", "--model.parallel_size=1"))
    done = predict.main("export", "openai-batch", "out", "--output=results")
    one_line(done, 1, "export openai-batch: prompt 0 has no custom_id")


@pytest.mark.slow
def test_images_are_those_of_the_same_indices(predict, tmp_path):
    """A request's images are those of a prompt at its place, with its seed."""
    assert predict("--data.on_error=skip").returncode == 3
    succeed(
        predict.main(
            "predict",
            *CPU,
            f"--model.model_path={records(tmp_path / 'out')[0]['model_path']}",
            "--data.prompts={0: a cat}",
            "--model.seed=5",
            "--model.parallel_size=3",
            "--writer.output_dir=alone",
        )
    )
    ours, theirs = records(tmp_path / "out"), records(tmp_path / "alone")
    for one, other in product(range(3), range(3)):
        same = [
            (tmp_path / folder / line["file_name"]).read_bytes()[-400:]
            for folder, line in (("out", ours[one]), ("alone", theirs[other]))
        ]
        assert (same[0] == same[1]) is (one == other)
