"""A compiled step that fails costs time, not the run; images are those of the step as written."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_dola import JanusPipeline
from lit_dola.decoding import step
from lit_dola.decoding.loop import StepError, TokenGenerator
from lit_dola.errors import RankError, UserError
from lit_dola.tasks import compiled
from lit_dola.tasks.decode import DecodingModule
from tests.support import forked
from tests.support.commands import CPU, MAIN, records
from tests.support.questions import answers, write_questions

pytestmark = pytest.mark.slow


class Broken:
    """A compiler in the place of torch's, and what it makes of the step."""

    def __init__(self, how):
        self.how = how
        self.compiled = self.calls = 0

    def compile(self, step, **options):
        self.compiled += 1
        if self.how == "at compile time":
            raise RuntimeError("torch.compile is not supported here\nsorry")

        def run(decoder, cache, inputs, *rest):
            self.calls += 1
            self.fail()
            drawn = step(decoder, cache, inputs, *rest)
            tokens = drawn.tokens
            if self.how == "other tokens":
                return drawn._replace(tokens=(tokens + 1) % 32)
            if self.how == "NaN":
                nothing = torch.zeros_like(drawn.finite)
                return drawn._replace(tokens=torch.zeros_like(tokens), finite=nothing)
            return drawn

        return run

    def fail(self):
        if self.how == "at the first call" or (self.how == "at the tenth call" and self.calls > 9):
            raise AssertionError("a graph that cannot be captured") from ValueError("an old driver")
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.how == "Triton":
            raise RuntimeError(
                "backend='inductor' raised:\nTritonMissing: Cannot find a working triton"
            )
        if self.how == "compiler":
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in PATH")


REASONS = {
    "at compile time": "RuntimeError: torch.compile is not supported here",
    "at the first call": "ValueError: an old driver",
    "at the tenth call": "ValueError: an old driver",
    "other tokens": "it draws other tokens than the step as written",
    "NaN": "it draws other tokens than the step as written",
    "memory": "out of memory",
    "Triton": "Triton is not installed",
    "compiler": "no C++ compiler",
}
LESS_EXACT = "of its tokens are not those with the largest score"


def make_broken(how, monkeypatch=None):
    """Let ``auto`` mean a compiled step on a CPU, too, and break the compiler."""
    patch = monkeypatch.setattr if monkeypatch else setattr
    broken = Broken(how)
    patch(DecodingModule, "compiles_by_default", lambda self: True)
    patch(torch, "compile", broken.compile)
    return broken


@pytest.fixture
def run(main_here, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a cat", "two blue birds on a branch", "a dog"]')

    def run(name, *args, task="predict"):
        own = {"predict": ["--model.parallel_size=1", "--writer.save_tokens=true"],
               "answer": ["--data.question_json=questions.jsonl"]}[task]  # fmt: skip
        return main_here(
            tmp_path, task, "--trainer.accelerator=cpu", "--trainer.devices=1",
            f"--model.model_path={tiny_checkpoint}", f"--writer.output_dir={name}", *own, *args,
        )  # fmt: skip

    return run


def tokens(folder):
    return [np.load(path).tolist() for path in sorted(folder.rglob("*.npy"))]


def step_of(folder):
    return json.loads((folder / "run.json").read_text())["step"]


def warnings(done):
    return [line for line in done.stderr.splitlines() if line.startswith("WARNING")]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("how", REASONS)
def test_the_run_goes_on(how, precision, run, tmp_path, monkeypatch):
    common = (f"--trainer.precision={precision}", "--model.images_per_batch=2")
    assert run("as-written", "--model.compile=false", *common).returncode == 0
    assert step_of(tmp_path / "as-written") == "as written"
    make_broken(how, monkeypatch)
    done = run("auto", *common)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in warnings(done) if "compiled" in line]
    reason = REASONS[how]
    if precision != "32-true" and reason.startswith("it draws"):
        reason = line.partition(": compiled step: ")[2].partition(";")[0]
        assert reason.endswith(LESS_EXACT)
    assert line == (
        f"WARNING: compiled step: {reason}; continuing with the step as written, which is slower"
    )
    assert step_of(tmp_path / "auto") == "as written"
    assert tokens(tmp_path / "auto") == tokens(tmp_path / "as-written")
    if precision == "bf16-true":
        assert [record["compile"] for record in records(tmp_path / "auto")] == [False] * 3


@pytest.mark.parametrize("how", REASONS)
def test_what_was_asked_for_fails_with_the_reason(how, run, monkeypatch):
    make_broken(how, monkeypatch)
    done = run("true", "--model.compile=true")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: model.compile: true: {REASONS[how]}; expected auto or false"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("args", [(), ("--model.speculative=4",)], ids=str)
def test_a_step_that_works_is_used(precision, args, run, tmp_path, monkeypatch):
    compiler = make_broken("not at all", monkeypatch)
    done = run("auto", f"--trainer.precision={precision}", *args)
    assert done.returncode == 0, done.stderr
    assert "compiled step: tried in 0 s, it draws what the step as written does" in done.stderr
    assert warnings(done) == []
    assert step_of(tmp_path / "auto") == "compiled"
    assert compiler.compiled == 1  # the run uses what was tried


@pytest.mark.parametrize("tried", [False, True])
def test_nothing_is_compiled_for_the_trial_alone(tried, run, monkeypatch):
    """Dynamo traces one graph for all lengths, with the trial and without."""
    compile = torch.compile
    make_broken("not at all", monkeypatch)
    monkeypatch.setattr(
        torch, "compile", lambda step, **_: compile(step, backend="eager", fullgraph=True)
    )
    if not tried:
        monkeypatch.setattr(compiled, "_fault", lambda module: None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert run("out", "--model.images_per_batch=2").returncode == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("how", ["at the tenth call", "other tokens"])
def test_answers(how, run, tmp_path, monkeypatch):
    write_questions(tmp_path)
    common = ("--model.max_new_tokens=14", "--model.cfg_weight=2")
    assert run("as-written", *common, task="answer").returncode == 0
    make_broken(how, monkeypatch)
    done = run("auto", *common, task="answer")
    assert done.returncode == 0, done.stderr
    assert len(warnings(done)) == 1
    found, expected = (answers(tmp_path / name) for name in ("auto", "as-written"))
    assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]


def test_a_batch_that_does_not_fit_is_halved_before_the_step_is_given_up(
    run, tmp_path, monkeypatch
):
    broken = make_broken("not at all", monkeypatch)

    def fail():
        if broken.rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    compiled = broken.compile

    def compile(step, **options):
        run = compiled(step)

        def counted(decoder, cache, inputs, *rest):
            broken.rows = len(inputs)
            return run(decoder, cache, inputs, *rest)

        return counted

    broken.fail = fail
    monkeypatch.setattr(torch, "compile", compile)
    done = run("auto", "--model.parallel_size=4", "--model.images_per_batch=8")
    assert done.returncode == 0, done.stderr
    assert step_of(tmp_path / "auto") == "compiled"
    assert [line.partition(";")[0] for line in warnings(done)] == [
        f"WARNING: out of memory: continuing with at most {count} images at once"
        for count in (4, 2)
    ]


class Compilable:
    """What :func:`choose_step` needs of a module on a GPU."""

    def __init__(self, compile="auto"):
        self.janus, self.compile_step = torch.nn.Module(), compile
        self.graphs, self.fault, self.renewed = True, None, []
        self.plan, self.device = SimpleNamespace(requests=[0]), torch.device("cpu")
        strategy = SimpleNamespace(reduce=lambda flag, reduce_op: flag)
        self.trainer = SimpleNamespace(world_size=1, is_global_zero=True, strategy=strategy)

    def renew_generator(self):
        self.renewed.append((self.graphs, self.fault))


@pytest.mark.parametrize("compile", ["auto", True])
@pytest.mark.parametrize("works", [(True, True), (False, True), (False, False)])
def test_cuda_graphs_that_fail_leave_a_compiled_step(compile, works, monkeypatch, caplog):
    with_graphs, without = works
    monkeypatch.setattr(
        compiled, "_fault", lambda it: None if (with_graphs if it.graphs else without) else "no"
    )
    module = Compilable(compile)
    if not without and compile is True:
        with pytest.raises(RankError, match=r"model\.compile: true: no; expected auto or false"):
            compiled.choose_step(module)
        return
    compiled.choose_step(module)
    assert module.graphs is with_graphs
    assert module.fault == (None if without else "no")
    expected = [(True, None), (False, None), (False, "no")]
    assert module.renewed == expected[: 3 - with_graphs - without]
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert (
        said
        == [
            "compiled step with CUDA graphs: no; trying one without",
            "compiled step: no; continuing with the step as written, which is slower",
        ][: 2 - with_graphs - without]
    )
    again = Compilable(compile)
    again.janus = module.janus
    monkeypatch.setattr(compiled, "_fault", None)  # not called again
    compiled.choose_step(again)
    assert (again.graphs, again.fault) == (module.graphs, module.fault)
    again.device = torch.device("meta")
    with pytest.raises(TypeError):  # where it is called
        compiled.choose_step(again)


def fail_on_second_rank(how):
    make_broken(how if os.environ["SLURM_PROCID"] == "1" else "not at all")


@pytest.mark.parametrize("how", ["at the first call", "other tokens"])
def test_ranks_decide_alike(how, tiny_checkpoint, tmp_path):
    (tmp_path / "prompt.json").write_text('["a cat", "a dog", "a bird", "a fish"]')
    args = [
        "predict", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp",
        f"--model.model_path={tiny_checkpoint}", f"--data.prompt_json={tmp_path}/prompt.json",
        f"--writer.output_dir={tmp_path}/out", "--model.parallel_size=1",
        "--trainer.precision=bf16-true",
    ]  # fmt: skip
    done = forked.run_ranks(tmp_path, 2, args, breaking=fail_on_second_rank, details=[how])
    assert [each.returncode for each in done] == [0, 0], done
    assert "it cannot be used on another rank; continuing" in done[0].stderr
    assert [record["compile"] for record in records(tmp_path / "out")] == [False] * 4
    assert step_of(tmp_path / "out") == "as written"


def test_a_program_tries_a_model_once(tiny_checkpoint, monkeypatch):
    compiler = make_broken("other tokens", monkeypatch)
    pipeline = JanusPipeline.from_pretrained(str(tiny_checkpoint))
    for _ in "12":
        pipeline("a cat", parallel_size=1, progress=False)
    assert compiler.compiled == 1
    with pytest.raises(UserError, match=r"^compile: true: it draws other tokens .*; expected auto"):
        pipeline("a cat", parallel_size=1, progress=False, compile=True)
    assert compiler.compiled == 1


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"TORCHDYNAMO_DISABLE": "1"}, "TORCHDYNAMO_DISABLE is set"),
        ({"TORCH_COMPILE_DISABLE": "1"}, "TORCH_COMPILE_DISABLE is set"),
        ({"PATH": "/nowhere", "CXX": "", "CC": ""}, "no C++ compiler"),
    ],
)
def test_a_machine_that_cannot_compile(variables, reason, tiny_checkpoint, tmp_path):
    command = [
        "predict", *CPU, "--data.prompts=a cat", f"--model.model_path={tiny_checkpoint}",
        "--model.compile=true", "--model.parallel_size=1",
    ]  # fmt: skip
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), **variables}
    done = subprocess.run(
        [sys.executable, MAIN, *command], cwd=tmp_path, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: model.compile: true: {reason}; expected auto or false"
    )


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch can compile for CUDA")
def test_a_build_for_cpus_that_is_asked_to_compile_for_cuda(monkeypatch):
    """The reason is the compiler's own, not that something was raised."""
    monkeypatch.setattr(step, "decode_window", lambda decoder, inputs: inputs @ inputs)
    generator = SimpleNamespace(compile=True, graphs=True, decoder=None, _step=None, _weights=list)
    with FakeTensorMode(), pytest.raises(StepError) as raised:
        TokenGenerator._run_step(generator, torch.empty(2, 2, device="cuda"))
    said = "RuntimeError: PyTorch is not linked with support for cuda devices"
    assert compiled.fault_of(raised.value) == said
