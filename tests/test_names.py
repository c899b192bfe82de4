"""Names that are not UTF-8, as Linux allows: a whole run in such a folder, and a page of two."""

import pytest

from tests.support.commands import messages, one_line, records, succeed


@pytest.mark.slow
@pytest.mark.parametrize("format", ["jpg", "png"])
def test_a_run_into_a_folder_with_such_a_name(format, main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a cat"]')
    flags = [
        "--trainer.accelerator=cpu", "--trainer.devices=1", f"--model.model_path={tiny_checkpoint}",
        "--model.parallel_size=1", f"--writer.format={format}", "--writer.grid=true",
    ]  # fmt: skip
    for output, alpha in (("o\udcff", 0.1), ("p\udcff", 0.2), ("o\udcff", 0.1)):
        more = [f"--writer.output_dir={output}", f"--model.alpha={alpha}"]
        done = succeed(main_here(tmp_path, "predict", *flags, *more))
        assert messages(done.stderr) == ""
    assert len(records(tmp_path / "o\udcff")) == 1
    done = succeed(main_here(tmp_path, "compare", "o\udcff", "p\udcff", "--output=page\udcff"))
    assert done.stdout == "page\\udcff/index.html\n"
    assert b"../o%FF/" in (tmp_path / "page\udcff" / "index.html").read_bytes()


def test_a_checkpoint_with_such_a_name_is_a_line(main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "m\udcff").symlink_to(tiny_checkpoint)
    (tmp_path / "prompt.json").write_text('["a cat"]')
    done = main_here(tmp_path, "predict", "--trainer.accelerator=cpu", "--model.model_path=m\udcff")
    one_line(done, 1, "model.model_path: m\\udcff is not UTF-8; expected UTF-8")
