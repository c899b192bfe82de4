"""Texts that users give: taken as they are, in any encoding that a file names, on any terminal."""

import json
import os
import subprocess
import sys
from errno import ENOSPC
from functools import cache
from pathlib import Path

import pytest
import yaml

from lit_dola import __version__
from lit_dola.cli.parser import parser_options
from lit_dola.cli.tasks import ParsedTask
from lit_dola.errors import UserError
from lit_dola.settings.checks import given_path
from lit_dola.settings.texts import decode
from lit_dola.tasks.answer import LitAnswer
from lit_dola.tasks.generate import LitDoLa
from tests.support import forked
from tests.support.commands import CPU, MAIN, one_line
from tests.support.pages import write_run

ODD = [
    "null", "NULL", "~", "# blurry", "1e3", "12", "1.5", "true", "no", "2024-05-01", "12:30", "0x1",
    "a: b", "- a", "'a", '"a"', "[a", "{a", "&a", "*a", "!a", "%a", "@a", "`a", "a #b", ": a", "?",
    "a\x85b", "a\x7fb", "a\ufffeb", "a\u2028b", "\ufeffa", "🦊", "猫", " a ", "a\nb", "\t", "=",
]  # fmt: skip
"""Texts that YAML reads as something else, or not at all."""


@cache
def parser_of(task):
    return ParsedTask(task).parser(**parser_options(task))


def parse(args, task="predict"):
    return parser_of(task).parse_args(args)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a configuration, and return the argument that names it."""
    monkeypatch.chdir(tmp_path)

    def write(content, name="c.yaml"):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
        return f"--config={name}"

    return write


def yaml_of(settings):
    return yaml.safe_dump(settings, default_style='"')


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_that_text(text, config, monkeypatch):
    flags = [f"--model.negative_prompt={text}", f"--data.prompts={text}"]
    for args in (flags, [config(yaml_of({"model": {"negative_prompt": text},
                                         "data": {"prompts": text}}))]):  # fmt: skip
        found = parse(args)
        assert found.model.negative_prompt == text
        if text[0] not in "[{":
            assert found.data.prompts == text
    monkeypatch.setenv("LIT_DOLA_PREDICT__MODEL__NEGATIVE_PROMPT", text)
    assert parse([]).model.negative_prompt == text
    assert LitDoLa.checked({"negative_prompt": text}).hparams["negative_prompt"] == text
    assert LitAnswer.checked({"system_prompt": text}).hparams["system_prompt"] == text
    found = parse([f"--model.system_prompt={text}"], "answer")
    assert found.model.system_prompt == text


@pytest.mark.parametrize("value", ["12", "1e3", "true", "[a]", "{a: b}", "2.5"])
@pytest.mark.parametrize("setting", ["model.negative_prompt", "data.prompts"])
def test_what_is_no_text_in_yaml_is_refused(setting, value, config, capsys):
    group, name = setting.split(".")
    if name == "prompts" and value in ("[a]", "{a: b}"):
        pytest.skip("a list or a map of prompts")
    with pytest.raises(SystemExit) as ended:
        parse([config(f"{group}: {{{name}: {value}}}")])
    assert ended.value.code == 2
    assert setting in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


def test_null_in_yaml_is_none(config):
    assert parse([config("model: {negative_prompt: null}")]).model.negative_prompt is None
    assert parse([config("data: {prompts: }")]).data.prompts is None


def test_lists_and_maps_of_prompts_are_still_read():
    assert parse(["--data.prompts=[a, b]"]).data.prompts == ["a", "b"]
    assert parse(['--data.prompts={"3": "a"}']).data.prompts in ({3: "a"}, {"3": "a"})
    assert parse(["--data.prompts= {3: a}"]).data.prompts in ({3: "a"}, {"3": "a"})


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("way", ["--config", "--data", "environment"])
def test_configurations_have_the_encoding_that_they_name(
    encoding, way, main_here, tmp_path, monkeypatch
):
    """Whatever the locale is; Python reads files by it unless it is told."""
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "latin-1")
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    prompts = {"prompts": "un carré rouge 猫"}
    content = prompts if way == "--data" else {"data": prompts}
    text = yaml.safe_dump(content, allow_unicode=True)
    (tmp_path / "c.yaml").write_bytes(text.encode(encoding))
    flags = ["--config=demo", f"{way}=c.yaml"]
    if way == "environment":
        monkeypatch.setenv("LIT_DOLA_PREDICT__CONFIG", "c.yaml")
        flags = []
    done = main_here(tmp_path, "predict", *flags, "--print_config")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["data"]["prompts"] == prompts["prompts"]


@pytest.mark.parametrize("content", [b"data: {prompts: caf\xe9}", b"\xff\xfe\x00", b"\x80\x81\x82"])
@pytest.mark.parametrize("flag", ["--config=c.yaml", "--data=c.yaml"])
def test_a_configuration_in_no_encoding_is_one_line(content, flag, main_here, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    done = main_here(tmp_path, "predict", flag)
    one_line(done, done.returncode, "c.yaml: not UTF-")
    assert done.returncode in (1, 2)


def test_a_file_without_a_mark_is_utf_8():
    assert decode("é".encode()) == "é"
    with pytest.raises(UserError, match="not UTF-8: invalid continuation byte at byte 0"):
        decode("é ".encode("latin-1"))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1"])
@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--config=c.yaml", "--dry_run=true", *CPU],
        ["predict", "--config=c.yaml", "--print_config"],
        ["status", "猫"],
        ["status", "猫", "--json"],
        ["configs", "猫"],
        ["compare", "猫", "猫2", "--output=é"],
    ],
    ids=" ".join,
)
def test_a_terminal_that_cannot_show_a_text(command, encoding, tmp_path):
    (tmp_path / "c.yaml").write_text(
        json.dumps({"data": {"prompts": "un carré 猫"}, "writer": {"output_dir": "猫"},
                    "model": {"model_path": str(MAIN.parent / "checkpoints/shapes-janus")}})
    )  # fmt: skip
    (tmp_path / "猫").mkdir()
    (tmp_path / "猫/metadata.jsonl").write_text("")
    done = forked.finish(forked.start(tmp_path, command, print_in, encoding), tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    assert done.stdout + done.stderr


def print_in(encoding):
    """Print as with ``PYTHONIOENCODING``."""
    sys.stdout.reconfigure(encoding=encoding)
    sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_command_in_the_encoding_of_the_environment(encoding, tmp_path):
    (tmp_path / "猫").mkdir()
    done = subprocess.run(
        [sys.executable, MAIN, "status", "猫"], cwd=tmp_path, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 1
    assert rb"\u732b" in done.stdout + done.stderr


def test_the_forked_command_line_takes_texts(tmp_path):
    done = forked.run(tmp_path, ["predict", "--data.prompts", "3: a cat", "--print_config"])
    assert "prompts: '3: a cat'" in done.stdout


def print_to_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def print_to_full_device():
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.close(full)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


COMMANDS = [
    ["status", "run"],
    ["status", "run", "--json"],
    ["configs"],
    ["configs", "demo", "--output=copies"],
    ["--help"],
    ["predict", "--help"],
    ["predict", "--config=demo", "--print_config"],
    ["predict", "--config=demo", "--dry_run=true", *CPU],
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_what_is_printed(command, unbuffered, tmp_path):
    """Like ``| head -1``: it ends quietly. On a full device it ends with a line."""
    if unbuffered and command[0] == "predict":
        pytest.skip("the same code, at seconds a time")
    write_run(tmp_path / "run", ["a"])
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    for print_to, code in ((print_to_closed_pipe, 141), (print_to_full_device, 1)):
        if command[0] == "predict":  # forked: it imports torch
            done = forked.finish(forked.start(tmp_path, command, print_to), tmp_path)
        else:
            done = subprocess.run(
                [sys.executable, MAIN, *command], cwd=tmp_path, env=environment, text=True,
                preexec_fn=print_to, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        if command[0] == "configs" and code == 1 and len(command) > 1:
            assert done.stderr.startswith("error: configs: ")  # it has been copied
            continue
        assert done.returncode == code or "--help" in command  # argparse ignores it
        said = "".join(line for line in done.stderr.splitlines(True) if " recommends " not in line)
        assert said == (f"error: stdout: {os.strerror(ENOSPC)}\n" if done.returncode == 1 else "")


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"SLURM_LOCALID": "3"}])
def test_a_stray_variable_silences_no_error(variables, main_here, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = main_here(tmp_path, "status", "nowhere")
    one_line(done, 1, "nowhere: No such file or directory")
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            assert main_here(tmp_path, "status", "nowhere").stderr == ""


def test_a_name_that_begins_as_a_home_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert given_path("data.run", "~no-such-user/out") == Path("~no-such-user/out")
    assert given_path("data.run", "~/out") == Path.home() / "out"
    monkeypatch.setattr(Path, "expanduser", lambda path: fail_to_expand())
    with pytest.raises(UserError, match=r"^data\.run: ~/out: .*; expected a path without ~"):
        given_path("data.run", "~/out")


def fail_to_expand():
    raise RuntimeError("Could not determine home directory.")


def test_the_package_is_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lit_dola", "--version"], cwd=tmp_path, capture_output=True,
        text=True, check=True, env={**os.environ, "PYTHONPATH": str(MAIN.parent)},
    )  # fmt: skip
    assert done.stdout == f"lit-dola {__version__}\n"


def test_messages_do_not_quote_at_length():
    error = UserError("x" * 50_000, "a text", at="y" * 50_000).within("z" * 50_000)
    assert len(str(error)) < 4000
    assert str(error).endswith("; expected a text")


ODD_VARIABLES = [
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"HTTPS_PROXY": "socks4://[::1"},
    {"HF_TOKEN": "schlüssel"},
    {"HF_TOKEN": "a\nb"},
]


@pytest.mark.slow
@pytest.mark.parametrize("variables", ODD_VARIABLES, ids=str)
def test_what_the_hub_cannot_be_asked_with(variables, tmp_path):
    args = ["predict", *CPU, "--model.model_path=some/model", "--data.prompts=a"]
    done = forked.run(tmp_path, args, HF_HUB_OFFLINE="0", **variables)
    one_line(done, 1, "model.model_path: 'some/model' is not a local folder, and it could not be")


@pytest.mark.slow
def test_proxies_do_not_keep_the_playground_from_starting(tmp_path):
    pytest.importorskip("gradio")
    code = "import os, lit_dola.apps.playground; print(os.environ['ALL_PROXY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=MAIN.parent, capture_output=True, text=True, check=True,
        env={**os.environ, "ALL_PROXY": "socks5://127.0.0.1:9"},
    )  # fmt: skip
    assert done.stdout == "socks5://127.0.0.1:9\n"
