"""The benchmark: every method draws all images, in turns, from one model."""

import json
from importlib.util import find_spec

import pytest
import torch

from benchmarks import decode, gpu, profile, quantized
from benchmarks.methods import make_methods
from benchmarks.models import BOI, BOS, SIZES, random_janus, random_prompts
from lit_dola.janus.model import TransformersJanus
from lit_dola.verification import measure, subject
from lit_dola.verification.measure import decoded_weights
from tests.support import original


@pytest.fixture(scope="module")
def janus():
    return random_janus("tiny", 3, torch.float32, torch.device("cpu"))


@pytest.mark.slow
def test_every_method_draws_every_image(janus):
    for name, run in make_methods(janus, random_prompts(2), 2, compile=False).items():
        tokens = run(3)
        assert tokens.shape == (4, 3), name
        assert ((tokens >= 0) & (tokens < 16384)).all()


def test_prompts_are_of_one_length_so_that_transformers_can_batch_them():
    prompts = random_prompts(5)
    assert {len(ids) for ids in prompts} == {24}
    assert all(ids[0] == BOS and ids[-1] == BOI for ids in prompts)


@pytest.mark.slow
def test_presets_have_the_sizes_that_they_are_called_by():
    assert SIZES["7b"] == original.LLAMA["Janus-Pro-7B"]
    assert SIZES["1b"] == original.LLAMA["Janus-Pro-1B"]
    small = random_janus("small", 3, torch.float32, torch.device("cpu"))
    assert 90e6 < decoded_weights(small).numel < 110e6


@pytest.mark.slow
def test_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode, "_peak_memory_ratio", lambda *_: 1.0)  # it takes two processes
    monkeypatch.setitem(measure._COPIED_BYTES, "cpu", 2**18)
    decode.main("tiny", prompts=2, images=1, tokens=3, repeats=2, output=tmp_path)
    result = json.loads((tmp_path / "decode.json").read_text())
    assert set(result["methods"]) == {
        "a",
        "a_batch",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h",
        "i",
        "j",
        "k",
    }
    assert set(result["ratios"]) == {
        "d/c",
        "e/c",
        "f/c",
        "g/c",
        "d/h",
        "c/i",
        "j/c",
        "k/d",
        "b/d",
        "a/c",
        "a_batch/c",
        "a_batch/i",
    }
    for ratio in result["ratios"].values():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    printed = capsys.readouterr().out
    assert "| (b) plain loop with DoLa, a prompt at a time |" in printed
    assert "| d/c |" in printed


@pytest.fixture
def print_table(monkeypatch, capsys):
    """Print the table for a GPU with the sizes of a toy, and without the large VQ decoder."""
    monkeypatch.setitem(measure._COPIED_BYTES, "cpu", 2**18)
    for module in (gpu, subject):
        monkeypatch.setattr(module, "TURNS", 1)
    monkeypatch.setattr(
        TransformersJanus, "decode_image_tokens",
        lambda janus, tokens: torch.zeros(len(tokens), 3, 8, 8),
    )  # fmt: skip

    def run(**settings):
        small = {"preset": "tiny", "device": "cpu", "dtype": "bfloat16", "compile": False}
        gpu.main(**small, tokens=3, short=3, **settings)
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_every_part_of_the_table_for_a_gpu(print_table):
    parts = [part.__name__ for part in gpu.PARTS]
    if find_spec("torchao") is None:
        parts.remove("quantized")
    lines = print_table(parts=parts).splitlines()
    assert lines[0].startswith("| CPU, tiny, bfloat16, torch ")
    rows = dict(line.strip("| ").split(" | ") for line in lines[2:])
    assert rows["same image: among others"] == "3 of 3 as in a batch of 8"
    assert rows["images whose pixels are the same in a slice"] == "4 of 4"
    assert rows["speculative: tokens"].startswith("those of one at a time")
    assert not [name for name, found in rows.items() if "FAILED" in found]
    for name in (
        "images per second, 64 at once", "peak memory, 64 at once", "speed: step, 64 images",
        "speed: DoLa over baseline, 8 images", "old script's loop over ours, 64 images",
        "pass over step, 2 rows x window 256", "pixels: VQ decoder",
    ):  # fmt: skip
        assert float(rows[name].split()[0]) >= 0
    assert float(rows["old script's loop over ours, 64 images"]) > 0


@pytest.mark.slow
def test_parts_are_left_out_when_the_time_is_up(print_table):
    last = print_table(minutes=0.0).splitlines()[-1]
    assert last.startswith("| left out after 0 minutes | same_image, images_per_second, steps,")


@pytest.mark.slow
def test_shares_of_a_step_make_a_whole(capsys, monkeypatch):
    monkeypatch.setitem(measure._COPIED_BYTES, "cpu", 2**18)
    profile.main(["tiny"], rows=[2, 4], lengths=[30])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[:3] for row in rows] == [["| tiny", rows, "30"] for rows in "24"]
    for row in rows:
        *shares, ratio = row.strip("| ").split(" | ")[3:]
        assert 95 <= sum(float(share.rstrip("%")) for share in shares) <= 105
        assert float(ratio) > 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_quantized_weights_against_the_weights_themselves(capsys):
    with torch.inference_mode():
        quantized.main("tiny", images=[1], tokens=2, repeats=1, kinds=["int8wo", "int4wo"])
    errors = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in errors[:2]] == ["int8wo", "int4wo"]
    assert all(0 < float(line.split(": ")[1].split("%")[0]) < 20 for line in errors[:2])
    assert [line.split(" | ")[1] for line in errors[-2:]] == ["int8wo", "int4wo"]
