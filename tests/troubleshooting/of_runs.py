"""What provokes the messages about settings, running and the folder of a run."""

import errno
import os
import signal
import sys
from types import ModuleType, SimpleNamespace

import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from lit_dola import ImageWriter
from lit_dola.decoding.loop import TokenGenerator
from lit_dola.janus import packing, vq
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.loading import load_janus
from lit_dola.janus.model import TransformersJanus
from lit_dola.janus.quantization import _check_int4
from lit_dola.runs import image_file
from lit_dola.runs.claim import Claim
from lit_dola.runs.image_file import encode_image
from lit_dola.tasks import compiled, generate
from lit_dola.tasks.decode import DecodingModule
from lit_dola.verification import verify
from tests.decoding.test_lens import broken_file
from tests.support.commands import messages
from tests.troubleshooting.scene import CASES, case


@case("promises fail")
def a_promise_that_fails(scene):
    scene.monkeypatch.setattr(TransformersJanus, "decode_image_tokens", _nan)
    for name in ("measure_fitting", "measure_loops", "measure_dola"):
        scene.monkeypatch.setattr(verify, name, lambda *_: iter(()))
    return scene.predict(subcommand="verify"), 1


def _lens(kind, message):
    @case(message)
    def lens(scene):
        path = scene.folder / "lens.safetensors"
        broken_file(kind, path, Checkpoint.open(str(scene.checkpoint)))
        return scene.predict("--model.lens=lens.safetensors", "--model.layer=3"), 1


for kind, message in {
    "nothing": "lens: …: not found", "text": "not a lens", "head": "a lens of the text head",
    "size": "hidden size 64", "checkpoint": "a checkpoint with other weights",
    "layer": "no lens of layer",
}.items():  # fmt: skip
    _lens(kind, message)


@case("per_branch does not apply")
def policy_of_another_form(scene):
    return scene.predict("--model.contrast=guide", "--model.apc=per_branch"), 1


def _nan(janus, tokens):
    return torch.full((len(tokens), 3, 16, 16), torch.nan)


FLAGS = {
    "model.layer: 8 is not a middle layer": ["--model.layer=8"],
    "inspect: DoLa is off": ["--model.dola=false", "--model.inspect=[[0, 0]]"],
    "is not an image of this run": ["--model.inspect=[[0, 9]]"],
    "a sharded model cannot be inspected": ["--model.inspect=[[0, 0]]", "--trainer.strategy=fsdp2"],
    "a sharded model decodes in step": ["--model.speculative=4", "--trainer.strategy=fsdp2"],
    "quantized weights cannot be sharded": ["--model.quantize=int8wo", "--trainer.strategy=fsdp2"],
    "hangs on a CPU": ["--model.quantize=int8wo", "--model.compile=true"],
    "precision: bf16-mixed": ["--trainer.precision=bf16-mixed"],
    "ddp_spawn copies": ["--trainer.strategy=ddp_spawn"],
    "requires a GPU accelerator": ["--trainer.strategy=fsdp"],
    "on a machine without a GPU": ["--trainer.accelerator=gpu"],
    "images are missing": ["--trainer.limit_predict_batches=1", "--model.images_per_batch=1"],
}
"""Settings that end a run, by a part of the message."""


for message, flags in FLAGS.items():
    CASES[message] = lambda scene, flags=flags: (scene.predict(*flags), 1)


@case("did you mean model.alpha")
def misspelt(scene):
    return scene.predict("--model.alhpa=0.2"), 2


@case("unrecognized arguments: --writer.grid=true")
def setting_of_another_task(scene):
    return scene.main("serve", "--writer.grid=true"), 2


@case("temperature: null")
def null(scene):
    (scene.folder / "null.yaml").write_text("model:\n  temperature:\n")
    return scene.predict("--config=null.yaml"), 1


def quantize_on_gpu(scene, capability):
    """Let only the check of int4 run, as if there were a GPU."""
    gpu, patch = SimpleNamespace(type="cuda"), scene.monkeypatch.setattr
    patch(torch.cuda, "get_device_capability", lambda device: capability)
    patch(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    patch(
        "lit_dola.janus.loading.quantize_weights",
        lambda janus, how, device: _check_int4(janus.language_model.dtype, gpu),
    )


@case("layers as they are")
def int4_layers(scene):
    packages = {
        "torchao.quantization": {"quantize_": lambda *args, **how: None},
    }
    scene.monkeypatch.setattr("lit_dola.janus.quantization.require", lambda *args, **how: None)
    scene.monkeypatch.setattr("lit_dola.janus.quantization._config", lambda *how: None)
    for name, content in packages.items():
        scene.monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    scene.monkeypatch.setattr("lit_dola.janus.quantization.INT4_GROUP", 48)
    return scene.predict("--model.quantize=int4wo"), 0


@case("int4wo on a GPU, with weights in")
def int4_precision(scene):
    quantize_on_gpu(scene, (8, 0))
    return scene.predict("--model.quantize=int4wo"), 1


@case("of compute capability 8.0 or more")
def int4_old_gpu(scene):
    quantize_on_gpu(scene, (7, 5))
    return scene.predict("--model.quantize=int4wo", "--trainer.precision=bf16-true"), 1


@case("torchao is not installed")
def no_torchao(scene):
    scene.monkeypatch.setattr("lit_dola.settings.checks.find_spec", lambda name: None)
    return scene.predict("--model.quantize=int8wo"), 1


def use_deepseek(scene, *packages, transformers="4.57.6"):
    """Run with DeepSeek's backend, as if these packages were installed."""
    module = "lit_dola.janus.deepseek"
    scene.monkeypatch.setattr(
        f"{module}.find_spec", lambda name: ModuleType(name) if name in packages else None
    )
    scene.monkeypatch.setattr(f"{module}.version", lambda package: transformers)
    return scene.predict("--model.backend=deepseek"), 1


@case("DeepSeek's janus is not installed")
def no_janus(scene):
    return use_deepseek(scene)


@case("is the asyncio queue of that name")
def other_janus(scene):
    return use_deepseek(scene, "janus")


@case("cannot be imported under transformers")
def newer_transformers(scene):
    return use_deepseek(scene, "janus", "janus.models", transformers="5.24.0")


@case("which is in transformers' layout")
def other_layout(scene):
    return use_deepseek(scene, "janus", "janus.models")


def compile_with(scene, compiler, *args):
    """Let ``auto`` compile on a CPU, too."""
    scene.monkeypatch.setattr(DecodingModule, "compiles_by_default", lambda self: True)
    scene.monkeypatch.setattr(torch, "compile", compiler)
    return scene.predict(*args)


def no_compiler(step, **_options):
    raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")


@case("continuing with the step as written")
def step_that_cannot_be_compiled(scene):
    return compile_with(scene, no_compiler), 0


@case("model.compile: true: no C++ compiler")
def compiler_that_is_missing(scene):
    return compile_with(scene, no_compiler, "--model.compile=true"), 1


@case("it draws what the step as written does")
def step_that_is_compiled(scene):
    return compile_with(scene, lambda step, **_options: step), 0


@case("trying one without")
def graph_that_cannot_be_captured(scene):
    calls = []

    def fault(module):
        calls.append(module)
        module.graphs = len(calls) == 1
        return "no" if module.graphs else None

    scene.monkeypatch.setattr(compiled, "_fault", fault)
    code, said = compile_with(scene, lambda step, **_options: step)
    return (code, "".join(it for it in said.splitlines(True) if " tried in " not in it)), 0


@case("without fused kernels")
def attention_kernel_that_fails(scene):
    attention = F.scaled_dot_product_attention

    def kernel(*args, **more):
        if torch.backends.cuda.flash_sdp_enabled() and args[0].device.type != "meta":
            raise RuntimeError("No available kernel. Aborting execution.")
        return attention(*args, **more)

    scene.monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    enabled = ("flash_sdp", "mem_efficient_sdp", "cudnn_sdp")
    try:
        return scene.predict(), 0
    finally:
        for name in enabled:
            getattr(torch.backends.cuda, f"enable_{name}")(True)


@case("weights in oneDNN's layout")
def packed_weights_that_multiply_wrongly(scene):
    scene.monkeypatch.setattr(packing, "SMALLEST", 0)
    multiply = packing.PackedWeight.product
    scene.monkeypatch.setattr(packing.PackedWeight, "product", lambda *a: multiply(*a) + 1)
    return scene.predict(), 0


@case("VQ decoder in channels-last")
def vq_decoder_that_fails(scene):
    decode = TransformersJanus.decode_image_tokens

    def failing(janus, tokens):
        if tokens.device.type != "meta" and vq._is_last(janus.vq_model):
            raise RuntimeError("cuDNN: no algorithm")
        return decode(janus, tokens)

    def load(*args, **more):
        janus = load_janus(*args, **more)
        janus.vq_model.to(memory_format=torch.channels_last)
        return janus

    scene.monkeypatch.setattr(TransformersJanus, "decode_image_tokens", failing)
    scene.monkeypatch.setattr(generate, "load_janus", load)
    return scene.predict(), 0


@case("expected a logger that works, or none")
def logger_without_login(scene):
    def log_in(self):
        raise type("UsageError", (Exception,), {})("No API key configured")

    scene.monkeypatch.setattr(CSVLogger, "experiment", property(log_in))
    args = ("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={scene.folder}")
    return scene.predict(*args), 1


@case("Requirement 'wandb")
def no_wandb(scene):
    class Missing:
        __bool__ = staticmethod(lambda: False)
        __str__ = staticmethod(lambda: "Requirement 'wandb>=0.12.10' not met. HINT: install it")

    scene.monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", Missing())
    return scene.predict("--trainer.logger=WandbLogger"), 1


@case("skipped, see")
def skipped(scene):
    scene.write_prompts(["a", 3, 4])
    return scene.predict("--data.on_error=skip"), 3


@case("logits are NaN")
def logits_not_finite(scene):
    name = "model.generation_head.vision_head.weight"
    scene.spoil(lambda weights: weights[name].fill_(1e38))
    return scene.predict(), 1


@case("image 0: the VQ decoder's pixels are NaN")
def pixels_not_finite(scene):
    name = "model.vqmodel.quantize.embedding.weight"
    scene.spoil(lambda weights: weights[name].fill_(float("nan")))
    return scene.predict(), 1


def out_of_memory(scene, images):
    """Let the token loop run out of memory above so many images."""
    call = TokenGenerator.__call__

    def limited(self, prompts, *rest, **more):
        if len(prompts) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(self, prompts, *rest, **more)

    scene.monkeypatch.setattr(TokenGenerator, "__call__", limited)


@case("at most 1 images at once")
def too_many(scene):
    out_of_memory(scene, 1)
    return scene.predict(), 0


@case("out of memory at 1 image")
def too_large(scene):
    out_of_memory(scene, 0)
    return scene.predict("--model.images_per_batch=1"), 1


@case("No space left on device")
def full_disk(scene):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/x")

    scene.monkeypatch.setattr(image_file, "write_atomically", no_space)
    return scene.predict(), 1


@case("another rank ended early")
def other_rank(scene):
    def lost(*_args, **_kwargs):
        raise RuntimeError("Connection closed by peer")

    scene.monkeypatch.setattr(torch.distributed, "barrier", lost)
    setup = ImageWriter.setup

    def as_if_there_were_more(self, *args, **kwargs):
        setup(self, *args, **kwargs)
        self._ranks = object()

    scene.monkeypatch.setattr(ImageWriter, "setup", as_if_there_were_more)
    return scene.predict(), 1


def stop(scene, signum):
    """Send the signal while the first image is written."""

    def kill(*args):
        os.kill(os.getpid(), signum)
        return encode_image(*args)

    scene.monkeypatch.setattr(image_file, "encode_image", kill)
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {signum: signal.getsignal(signum) for signum in handled}
    done = scene.predict("--model.images_per_batch=1", "--model.parallel_size=50")
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    return done


@case("stopped by SIGTERM")
def stopped(scene):
    return stop(scene, signal.SIGTERM), 143


@case("scontrol requeue")
def not_queued_again(scene):
    slurm = {"NTASKS": "1", "JOB_ID": "4711", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "JOB_NAME": "dola", "NODELIST": "localhost"}.items():
        scene.monkeypatch.setenv(f"SLURM_{name}", value)
    scene.monkeypatch.setenv("PATH", "")
    code, stderr = stop(scene, signal.SIGUSR1)
    first, *others = messages(stderr).splitlines(keepends=True)
    assert first.startswith("stopped by SIGUSR1")
    return (code, "".join(others)), 128 + signal.SIGUSR1


@case("alpha was 0.1")
def mismatch(scene):
    assert scene.predict()[0] == 0
    return scene.predict("--model.alpha=0.2"), 1


@case("writing to …outputs-2")
def another_folder(scene):
    assert scene.predict()[0] == 0
    return scene.predict("--model.alpha=0.2", "--writer.on_mismatch=new_folder"), 0


@case("has been writing to")
def other_run(scene):
    (scene.folder / "outputs").mkdir()
    claim = Claim(scene.folder / "outputs")
    claim.take()
    found = scene.predict()
    claim.release()
    return found, 1


@case("not readable as an image")
def broken_image(scene):
    """Of a prompt that is no longer in the file."""
    (scene.folder / "outputs" / "00001_old").mkdir(parents=True)
    (scene.folder / "outputs" / "00001_old" / "img_00.jpg").write_bytes(b"")
    return scene.predict("--writer.grid=true"), 1


@case("not a record of a run")
def foreign_folder(scene):
    (scene.folder / "outputs").mkdir()
    (scene.folder / "outputs" / "metadata.jsonl").write_text('{"file_name": "x.png"}\n')
    return scene.predict(), 1


@case("a symbolic link")
def link(scene):
    (scene.folder / "outputs").mkdir()
    (scene.folder / "outputs" / "00000_a_cat").symlink_to(scene.folder)
    return scene.predict(), 1
