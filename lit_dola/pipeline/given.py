"""The data modules of the tasks, for what is given in Python in place of a file."""

from collections.abc import Sequence
from typing import Any

from lit_dola.data.datamodule import PromptDataModule
from lit_dola.data.item_file import check_labels
from lit_dola.data.items import ItemDataModule
from lit_dola.data.pictures import Picture, check_picture
from lit_dola.data.question_file import Question, question_of
from lit_dola.data.questions import QuestionDataModule
from lit_dola.data.requests import Failure, Prompt, RankRequest
from lit_dola.errors import UserError
from lit_dola.janus.checkpoint import Checkpoint
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.pipeline.arguments import Pair, name_of
from lit_dola.tasks.answer import LitAnswer
from lit_dola.tasks.generate import LitDoLa
from lit_dola.tasks.rank import LitRank


class GivenPrompts(PromptDataModule):
    """Prompts from a list.

    Args:
        prompts: The prompts.
        model: The task.
        checkpoint: The checkpoint of its model.
        encoder: The tokenizer.
        seeds: Seed of each image; None: the model's for all.
    """

    prompts_name = "prompts"

    def __init__(
        self,
        prompts: list[Any],
        model: LitDoLa,
        checkpoint: Checkpoint,
        encoder: PromptEncoder,
        seeds: Sequence[int] | None,
    ) -> None:
        super().__init__(
            "prompts",
            model.model_path,
            model.roles,
            model.parallel_size,
            model.images_per_batch,
            model.hparams["negative_prompt"],
            prompts=prompts,
        )
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.seeds = seeds


class GivenQuestions(QuestionDataModule):
    """Questions about pictures, from a list.

    Args:
        pairs: Pictures and the question about them.
        model: The task.
        checkpoint: The checkpoint of its model.
    """

    def __init__(self, pairs: Sequence[Pair], model: LitAnswer, checkpoint: Checkpoint) -> None:
        super().__init__(
            "questions",
            None,
            model.model_path,
            model.hparams["roles"],
            model.hparams["system_prompt"],
            model.max_new_tokens,
            model.hparams["questions_per_batch"],
        )
        self.pairs = pairs
        self.checkpoint = checkpoint

    def read_questions(self, skipped: list[Failure] | None) -> list[Question]:
        """Check the questions and their pictures."""
        return [self._question(index, *pair) for index, pair in enumerate(self.pairs)]

    def _question(self, index: int, pictures: tuple[Picture, ...], text: Any) -> Question:
        try:
            question = question_of({"question": text})
            names = _checked(pictures)
        except UserError as error:
            raise UserError(f"questions: entry {index}: {error}") from error
        entry = {"image": names if len(names) > 1 else names[0], "question": question}
        return Question(Prompt(index, question, entry), pictures, tuple(names))


class GivenItems(ItemDataModule):
    """Pictures with labels to rank, from a list.

    Args:
        pairs: A picture, and its labels.
        model: The task.
        checkpoint: The checkpoint of a Janus; None: the model is a SigLIP.
    """

    def __init__(
        self, pairs: Sequence[Pair], model: LitRank, checkpoint: Checkpoint | None
    ) -> None:
        super().__init__(
            "images",
            model_path=model.model_path,
            scorer=model.scorer,
            roles=model.hparams["roles"],
            system_prompt=model.hparams["system_prompt"],
        )
        self.pairs = pairs
        if checkpoint is not None:
            self.checkpoint = checkpoint

    def read_requests(self, skipped: list[Failure] | None) -> list[RankRequest]:
        """Check the pictures and the labels."""
        return [self._request(index, *pair) for index, pair in enumerate(self.pairs)]

    def _request(self, index: int, pictures: tuple[Picture, ...], labels: Any) -> RankRequest:
        """Rank labels for one picture, or several pictures for one text."""
        over_pictures = isinstance(labels, str)
        try:
            found = check_labels([labels] if over_pictures else labels)
            names = _checked(pictures)
        except UserError as error:
            raise UserError(f"images: entry {index}: {error}") from error
        entry = {"image": names if over_pictures else names[0], "labels": [*found]}
        return RankRequest(
            Prompt(index, names[0], entry), pictures, tuple(names), found,
            "pictures" if over_pictures else "labels",
        )  # fmt: skip


def _checked(pictures: tuple[Picture, ...]) -> list[str]:
    """Look at pictures, and return what records call them.

    Raises:
        UserError: If one is not there, or is no picture.
    """
    for picture in pictures:
        check_picture(picture)
    return [*map(name_of, pictures)]
