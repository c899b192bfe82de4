"""The training recipe: both stages through their command line, and their results."""

import csv
import math
import random
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from lit_dola.decoding.loop import cfg_pair
from lit_dola.janus.question import SYSTEM_PROMPT
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.janus.vq import encode_pixels
from recipes.shapes.conversation import answer_loss, converse
from recipes.shapes.data import ShapesDataModule
from recipes.shapes.language import JanusTraining, pad_left
from recipes.shapes.scene import Object
from recipes.shapes.train import main
from recipes.shapes.vq import VQTraining, merge_codes
from recipes.shapes.words import WORDS, word_loss, word_targets
from tests.support.commands import ROOT

pytestmark = pytest.mark.slow

RECIPE = ROOT / "recipes" / "shapes"
SHORT = [
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1",
    "--data.batch_size=2", "--data.steps_per_epoch=2",
]  # fmt: skip
SMALL = [
    "--trainer.strategy=auto",
    "--model.init_args.text_config.num_hidden_layers=2", "--model.init_args.warmup_steps=1",
    "--model.init_args.vision_epochs=0",
]  # fmt: skip


def vq_config():
    return yaml.safe_load((RECIPE / "vq.yaml").read_text())["model"]["init_args"]["vq_config"]


class Killed(BaseException):
    pass


class DieInTheSecondEpoch(Callback):
    """Simulates a power cut: everything that is not on the disk is lost."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise Killed


def fit(stage, epochs, *args):
    main(
        ["fit", f"--config={RECIPE / stage}.yaml", *SHORT, f"--trainer.max_epochs={epochs}", *args]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which both stages ran for a few steps."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["train.py"])
        for stage, small in (("vq", []), ("language", SMALL)):
            with pytest.raises(Killed):
                fit(
                    stage,
                    2,
                    *small,
                    "--trainer.callbacks+=tests.recipes.test_recipes.DieInTheSecondEpoch",
                )
            fit(stage, 2, *small)  # continues
    return folder / "outputs" / "shapes"


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "janus"


@pytest.fixture(scope="module")
def language(trained):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return lambda dropout: JanusTraining(
        str(trained / "vq"), sizes, tower, condition_dropout=dropout
    )


def logged(trained, stage):
    rows = []
    for log in sorted(trained.glob(f"{stage}-logs/*/metrics.csv")):
        rows += list(csv.DictReader(log.open()))
    return rows


def test_losses_are_logged_and_a_second_run_goes_on(trained):
    """From the end of the first epoch, of two steps."""
    for stage in ("vq", "language"):
        assert [int(row["step"]) for row in logged(trained, stage)] == [0, 1, 2, 3]
    vq = logged(trained, "vq")
    assert all(0 < float(row["embedding"]) < float(row["loss"]) for row in vq)
    language = logged(trained, "language")
    # Untrained: the loss of a uniform distribution over the codebook, in nats.
    codes = JanusVQVAE.from_pretrained(trained / "vq").config.num_embeddings
    assert float(language[0]["loss"]) == pytest.approx(math.log(codes), abs=0.2)
    assert float(language[0]["words"]) > 10
    assert float(language[0]["answers"]) > 4


def test_pictures_go_on_where_they_were():
    data = ShapesDataModule(batch_size=2, steps_per_epoch=3)
    seen = []
    for epoch in range(2):
        data.trainer = SimpleNamespace(current_epoch=epoch, world_size=1)
        seen += [prompt for batch in data.train_dataloader() for prompt in batch.prompts]
    all_at_once = ShapesDataModule(batch_size=12, steps_per_epoch=1)
    (batch,) = all_at_once.train_dataloader()
    assert seen == batch.prompts
    assert batch.pixel_values.shape == (12, 3, 48, 48)
    assert batch.pixel_values.abs().max() <= 1


def test_processes_share_the_pictures_of_a_step():
    data = ShapesDataModule(batch_size=6, steps_per_epoch=2)
    data.trainer = SimpleNamespace(current_epoch=0, world_size=2)
    loader = data.train_dataloader()
    assert loader.batch_size == 3
    assert len(loader.dataset) == 12


def test_codebook_has_length_one_and_transformers_finds_the_tokens_of_training(trained):
    vq = JanusVQVAE.from_pretrained(trained / "vq").eval()
    lengths = vq.quantize.embedding.weight.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    (batch,) = ShapesDataModule(batch_size=4, steps_per_epoch=1).train_dataloader()
    with torch.no_grad():
        latents = F.normalize(vq.quant_conv(vq.encoder(batch.pixel_values)), dim=1)
        latents = latents.permute(0, 2, 3, 1).flatten(0, 2)
        nearest = torch.cdist(latents.double(), vq.quantize.embedding.weight.double()).argmin(-1)
        encoded = vq.encode(batch.pixel_values)  # a plain tuple before transformers 5
        found = encoded[2] if isinstance(encoded, tuple) else encoded.image_tokens
    assert (found == nearest).float().mean() > 0.99  # except for ties in the last bit


def test_a_codebook_that_is_all_in_use_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    two = "--model.init_args.vq_config.num_embeddings=2"
    fit("vq", 1, two, "--model.init_args.restart_every=1")
    assert "1.0" in {row["codes_used"] for row in logged(tmp_path / "outputs" / "shapes", "vq")}


def test_codes_that_mean_the_same_become_one():
    torch.manual_seed(0)
    sizes = {"embed_dim": 3, "base_channels": 32, "latent_channels": 32, "num_res_blocks": 1}
    config = JanusVQVAEConfig(**sizes, num_embeddings=200, channel_multiplier=[1, 1, 2])
    config.num_patches = 12
    vq = JanusVQVAE(config).eval()
    codebook = F.normalize(torch.randn(200, 3), dim=-1)
    vq.quantize.embedding.weight.data.copy_(codebook)
    (batch,) = ShapesDataModule(batch_size=8, steps_per_epoch=1).train_dataloader()
    with torch.no_grad():
        latents = F.normalize(vq.quant_conv(vq.encoder(batch.pixel_values)), dim=1)
        similarity = latents.permute(0, 2, 3, 1).flatten(0, 2).double() @ codebook.double().T
    uses = similarity.argmax(-1).bincount(minlength=200)
    merge_codes(vq, [batch], above=0.9)
    kept = vq.quantize.embedding.weight.detach()
    assert len(kept) == vq.config.num_embeddings < 150
    places = [int((codebook == code).all(-1).nonzero()) for code in kept]
    among = kept.double() @ kept.double().T - torch.eye(len(kept))
    assert among.max() <= 0.9
    for code in set(range(200)) - set(places):  # merged into a kept one
        alike = codebook[places] @ codebook[code] > 0.9
        assert uses[places][alike].max() >= uses[code]


def test_ground_is_pulled_to_the_first_code():
    training = VQTraining({**vq_config(), "num_embeddings": 4})
    (batch,) = ShapesDataModule(batch_size=4, steps_per_epoch=1).train_dataloader()
    first = training.vq.quantize.embedding.weight.detach()[0]
    latents = -first[None, :, None, None].repeat(4, 1, 12, 12)
    patches = batch.pixel_values.unfold(2, 4, 4).unfold(3, 4, 4)  # 4 pixels per token
    empty = (patches.amax(1) - patches.amin(1)).amax((-2, -1)) == 0
    assert 0.5 < empty.float().mean() < 1
    assert training._ground_loss(batch.pixel_values, latents).item() == pytest.approx(2)
    latents = torch.where(empty[:, None], -latents, latents)
    assert training._ground_loss(batch.pixel_values, latents).item() == pytest.approx(0, abs=1e-6)


def test_prompts_are_encoded_as_in_generation(checkpoint, language):
    encoder = PromptEncoder(checkpoint)
    prompts = ["a red circle", "two small squares to the left of a large blue triangle"]
    pad = encoder.pad_token_id
    branches = zip(*(cfg_pair(encoder.encode(prompt), pad) for prompt in prompts))
    expected, attended = pad_left([ids for branch in branches for ids in branch], pad)
    for dropout, rows in ((0.0, slice(0, 2)), (1.0, slice(2, 4))):
        input_ids, mask = language(dropout).encode_prompts(prompts)
        torch.testing.assert_close(input_ids, expected[rows])
        torch.testing.assert_close(mask, attended[rows])


def test_the_loss_is_that_of_one_picture_at_a_time(language):
    """Padding changes nothing, and each token is predicted from the earlier ones."""
    (batch,) = ShapesDataModule(batch_size=3, steps_per_epoch=1).train_dataloader()
    training = language(0.0).eval()
    loss = training.drawing_loss(batch)
    model, losses = training.janus.double(), []
    for pixels, prompt in zip(batch.pixel_values, batch.prompts):
        tokens = encode_pixels(training.float().janus.model.vqmodel, pixels[None])
        model.double()
        input_ids, _ = training.encode_prompts([prompt])
        for place in range(tokens.shape[1]):
            drawn = model.prepare_embeddings_for_image_generation(tokens[:, :place])
            text = model.get_input_embeddings()(input_ids)
            states = model.model.language_model(inputs_embeds=torch.cat([text, drawn], 1))
            logits = model.model.generation_head(states.last_hidden_state[:, -1])
            losses.append(F.cross_entropy(logits, tokens[:, place]).item())
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.parametrize("seen", [True, False])
def test_the_loss_of_answers_is_that_of_one_token_at_a_time(language, seen):
    """Each is predicted from the prompt of ``answer``, or of its unconditional branch."""
    (batch,) = ShapesDataModule(batch_size=3, steps_per_epoch=1).train_dataloader()
    training = language(0.0).eval().double()
    encoder, model, rng = training.encoder, training.janus.model, random.Random(0)
    talks = [converse(encoder, *pair, 3, rng) for pair in zip(batch.objects, batch.prompts)]
    pictures = model.aligner(model.vision_model(batch.pixel_values.double()).last_hidden_state)
    pad = encoder.pad_token_id
    loss = answer_loss(training.janus, pictures, talks, torch.tensor([seen] * 3), pad)
    losses = []
    for picture, (ids, labels) in zip(pictures, talks):
        assert len(ids) == len(labels)
        image = [place for place, token in enumerate(ids) if token == encoder.image_token_id]
        assert len(image) == len(picture)
        shown = [pad if place in image else token for place, token in enumerate(ids)]
        inputs = model.get_input_embeddings()(torch.tensor(shown))
        if seen:
            inputs[image] = picture
        for place in (place for place, label in enumerate(labels) if label != -100):
            assert labels[place] == ids[place + 1]
            states = model.language_model(inputs_embeds=inputs[None, : place + 1])
            logits = training.janus.lm_head(states.last_hidden_state[0, -1])
            losses.append(F.cross_entropy(logits, torch.tensor(labels[place])).item())
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_conversations_start_as_a_question_of_answer_and_end_answers(language):
    (batch,) = ShapesDataModule(batch_size=20, steps_per_epoch=1).train_dataloader()
    encoder, rng = language(0.0).encoder, random.Random(0)
    firsts = set()
    for objects, caption in zip(batch.objects, batch.prompts):
        ids, labels = converse(encoder, objects, caption, 4, rng)
        assert labels.count(encoder.eos_token_id) == ids.count(encoder.eos_token_id) == 4
        text = encoder.decode(ids)
        question = text.split("User|>: ")[-4].split("\n")[0] if "User|>" in text else ""
        start = next(place for place, label in enumerate(labels) if label != -100) + 1
        turn = encoder.decode(ids[:start]).removeprefix(SYSTEM_PROMPT)
        question = turn.split(": ")[1].split("\n\n")[0].strip()
        assert ids[:start] == encoder.encode_question(question)
        firsts.add(question.split()[0])
    assert len(firsts) > 3


def test_the_vision_tower_learns_first(language):
    """In the first epochs only it, the aligner and the words get a gradient."""
    (batch,) = ShapesDataModule(batch_size=3, steps_per_epoch=1).train_dataloader()
    training, logged = language(0.0), []
    training.log_dict = lambda losses, **_: logged.append(losses)
    training.trainer = SimpleNamespace(current_epoch=0, world_size=1)
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.shapes.language.take_step", lambda _, loss, clip: steps.append(loss))
        training.training_step(batch, 0)
        training.trainer = SimpleNamespace(current_epoch=5, world_size=1)
        training.training_step(batch, 0)
    assert [set(losses) for losses in logged] == [{"words"}, {"loss", "answers", "words"}]
    steps[0].backward()
    for name, weight in training.named_parameters():
        parts = ("vision_model", "aligner", "word_bias", "language_model.embed_tokens")
        sees = any(part in name for part in parts) and "generation" not in name
        assert (weight.grad is not None) == sees, name
    embedded = training.janus.model.language_model.embed_tokens.weight.grad.abs().sum(dim=-1)
    assert embedded.nonzero().flatten().tolist() == sorted(training.word_ids)
    assert training.encoder.decode(training.word_ids).split() == [*WORDS]


THINGS = [Object("cross", "purple", 10, 20, 8), Object("circle", "red", 40, 40, 4.5)]


def test_words_say_what_covers_the_centre_of_a_patch():
    targets = word_targets(THINGS, 12).view(12, 12, len(WORDS))
    for row in range(12):
        for column in range(12):
            x, y = column * 4 + 2, row * 4 + 2
            words = {
                (10, 20): {"purple", "cross", "large", "left", "top"},
                (40, 40): {"red", "circle", "small", "right", "bottom"},
            }
            expected = set()
            for thing in THINGS:
                if abs(x - thing.x) <= thing.radius and abs(y - thing.y) <= thing.radius:
                    expected |= words[thing.x, thing.y]
            if (row, column) in ((5, 2), (10, 10)):
                expected.add("object")
            told = {word for word, target in zip(WORDS, targets[row, column]) if target}
            assert told == expected, (row, column)


def test_the_loss_of_words_is_that_of_one_at_a_time():
    logits = torch.randn(2, 144, len(WORDS), generator=torch.Generator().manual_seed(0)).double()
    pictures = [THINGS, THINGS[:1]]
    totals = {"object": 0.0, "words": 0.0}
    for picture, things in zip(logits, pictures):
        for patch, targets in zip(picture, word_targets(things, 12)):
            for word, logit, target in zip(WORDS, patch.tolist(), targets.tolist()):
                chance = 1 / (1 + math.exp(-logit))
                loss = -math.log(chance if target else 1 - chance)
                totals["object" if word == "object" else "words"] += loss
    covered = sum(int(word_targets(things, 12)[:, 1:].any(-1).sum()) for things in pictures)
    expected = totals["object"] / 3 + totals["words"] / covered
    assert word_loss(logits, pictures).item() == pytest.approx(expected, rel=1e-5)


def test_what_makes_no_image_and_the_tokenizer_of_pictures_stay_as_they_are(trained, checkpoint):
    vq = JanusVQVAE.from_pretrained(trained / "vq").to(torch.bfloat16).state_dict()
    janus = JanusForConditionalGeneration.from_pretrained(checkpoint)
    for name, weight in janus.model.vqmodel.state_dict().items():
        torch.testing.assert_close(weight.to(torch.bfloat16), vq[name], rtol=0, atol=0)


def test_a_checkpoint_is_not_trained_over(trained, monkeypatch):
    monkeypatch.chdir(trained.parents[1])
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit, match="outputs/shapes/janus exists already"):
        fit("language", 3, *SMALL)
    fit("language", 2, *SMALL)  # done before: nothing to do


def test_the_checkpoint_draws(checkpoint, tmp_path, main_here):
    (tmp_path / "p.txt").write_text("a red circle")
    done = main_here(
        tmp_path, "predict", "--trainer.accelerator=cpu", "--model.parallel_size=1",
        f"--model.model_path={checkpoint}", "--data.prompt_json=p.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "outputs/00000_a_red_circle/img_00.jpg") as image:
        assert image.size == (48, 48)
