"""Where configurations, and the files that they name, are found."""

import re

import pytest

from lit_dola.shipped import shipped
from tests.support.commands import ROOT

ALL = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def dry(main_here, folder, config, *args):
    return main_here(folder, "predict", "--config", config, "--dry_run=true", *args)


def write_config(folder, **data):
    folder.mkdir(exist_ok=True)
    lines = ["model:", "  model_path: checkpoints/shapes-janus", "  parallel_size: 3", "data:"]
    lines += [f"  {name}: {value}" for name, value in data.items()]
    (folder / "mine.yaml").write_text("\n".join(lines))


def test_all_configurations_are_listed_with_a_sentence(main_here, tmp_path):
    done = main_here(tmp_path, "configs")
    rows = [re.split("  +", line) for line in done.stdout.splitlines()]
    assert [name for name, _ in rows] == ALL
    for _, about in rows:
        assert len(about) > 20
        assert not about.endswith(".")


def test_copied_configurations_work_where_they_are(main_here, tmp_path):
    done = main_here(tmp_path, "configs", "demo", "dola", "--output=mine")
    assert done.stdout.split() == ["mine/demo.yaml", "mine/dola.yaml"]
    for name in "demo", "dola":
        copied, original = tmp_path / f"mine/{name}.yaml", ROOT / f"configs/{name}.yaml"
        assert copied.read_bytes() == original.read_bytes()
    assert "32 images to generate" in dry(main_here, tmp_path, "mine/demo.yaml").stdout
    again = main_here(tmp_path, "configs", "dola", "--output=mine")
    assert again.returncode == 1
    assert "configs: mine/dola.yaml exists; expected another output" in again.stderr


@pytest.mark.parametrize("config", ["demo", "configs/demo.yaml"])
@pytest.mark.parametrize("how", ["--config {}", "--config={}", "-c {}"])
def test_a_shipped_configuration_works_in_any_folder(how, config, main_here, tmp_path):
    args = how.format(config).split()
    done = main_here(tmp_path, "predict", *args, "--dry_run=true")
    assert "32 images to generate" in done.stdout, done.stderr


def test_a_file_of_that_name_comes_first(main_here, tmp_path):
    write_config(tmp_path, prompt_json="p.txt")
    (tmp_path / "p.txt").write_text("a")
    (tmp_path / "mine.yaml").rename(tmp_path / "demo")
    assert "3 images to generate" in dry(main_here, tmp_path, "demo").stdout


def test_the_working_directory_comes_before_the_folder_of_the_configuration(main_here, tmp_path):
    write_config(tmp_path / "sub", prompt_json="p.txt")
    (tmp_path / "sub/p.txt").write_text("a\nb")
    assert "6 images to generate" in dry(main_here, tmp_path, "sub/mine.yaml").stdout
    (tmp_path / "p.txt").write_text("a")
    assert "3 images to generate" in dry(main_here, tmp_path, "sub/mine.yaml").stdout


@pytest.mark.parametrize(
    ("task", "setting", "value"),
    [
        ("predict", "data.prompt_json", "no.txt"),
        ("answer", "data.question_json", "no.json"),
        ("answer", "data.image_dir", "no/folder"),
        ("answer", "model.prior", "no.json"),
        ("rank", "data.item_json", "no.json"),
        ("rank", "data.run", "no/run"),
    ],
)
def test_the_message_says_where_it_looked(task, setting, value, main_here, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.yaml").write_text("model: {dola: true}\n")
    inputs = {
        "answer": ["--data.question_json=there.json"],
        "rank": ["--data.item_json=there.json"],
    }.get(task, [])
    (tmp_path / "there.json").write_text("[]")
    done = main_here(
        tmp_path, task, "--config=sub/mine.yaml", *inputs, f"--{setting}={value}", "--dry_run=true"
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {setting}: {value}: not found in the working directory, {tmp_path}, nor beside"
        " the configuration, in sub\n"
    )


def test_a_model_beside_the_configuration(main_here, tmp_path, tiny_checkpoint):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/tiny").symlink_to(tiny_checkpoint)
    (tmp_path / "sub/mine.yaml").write_text("model: {model_path: tiny, parallel_size: 2}\n")
    (tmp_path / "prompt.json").write_text('["a"]')
    done = dry(main_here, tmp_path, "sub/mine.yaml")
    assert "2 images to generate" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict", "--config", "demos"], "config: demos: not found; expected a file, or one of"),
        (["predict", "--config", "demos"], "; did you mean demo?"),
        (["configs", "demos"], "configs: demos: not found; expected answer, baseline, demo, "),
        (["configs", "demo", "--output=file/x"], "output: cannot write to file/x: "),
    ],
)
def test_what_is_not_there(args, message, main_here, tmp_path):
    (tmp_path / "file").write_text("")
    done = main_here(tmp_path, *args)
    assert done.returncode == (2 if args[0] == "predict" else 1)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["prompt.json", "outputs/demo", "README.md", "../pyproject.toml"])
def test_what_a_repository_has_besides_does_not_come_along(name, tmp_path, monkeypatch):
    """The prompts of whoever works there, for instance."""
    monkeypatch.setattr("lit_dola.shipped.shipped_root", lambda: tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    assert shipped(name) is None
    assert shipped("checkpoints/shapes-janus") is None
    (tmp_path / "checkpoints/shapes-janus").mkdir(parents=True)
    assert shipped("checkpoints/shapes-janus") == tmp_path / "checkpoints/shapes-janus"
