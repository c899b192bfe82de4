"""Data modules whose entries are in memory: what Python gives in place of a file."""

from collections.abc import Sequence
from typing import Any

from lit_dola.data.item_file import Item, check_labels
from lit_dola.data.items import ItemDataModule, request_of
from lit_dola.data.pictures import Picture, check_picture
from lit_dola.data.prompts import PromptDataModule
from lit_dola.data.question_file import Question, question_of
from lit_dola.data.questions import QuestionDataModule
from lit_dola.data.requests import Entry, Failure, RankRequest
from lit_dola.errors import within
from lit_dola.janus.checkpoint import ModelFolder
from lit_dola.janus.tokenizer import PromptEncoder
from lit_dola.pipeline.arguments import Pair, name_of


class PromptsInMemory(PromptDataModule):
    """Prompts from a list.

    Args:
        prompts: The prompts.
        model: The checkpoint.
        encoder: The tokenizer.
        seeds: Seed of each image; None: the model's for all.
    """

    prompts_name = "prompts"

    def __init__(
        self,
        prompts: list[Any],
        model: ModelFolder,
        encoder: PromptEncoder,
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__(prompts=prompts)
        self.model = model
        self.encoder = encoder
        self.seeds = seeds


class QuestionsInMemory(QuestionDataModule):
    """Questions about pictures, from a list."""

    def __init__(self, pairs: Sequence[Pair], model: ModelFolder) -> None:
        super().__init__("questions")
        self.pairs = pairs
        self.model = model

    def read_questions(self, skipped: list[Failure] | None) -> list[Question]:
        """Check the questions and their pictures."""
        return [self._question(index, *pair) for index, pair in enumerate(self.pairs)]

    def _question(self, index: int, pictures: tuple[Picture, ...], text: Any) -> Question:
        with within("questions", f"entry {index}"):
            question = question_of({"question": text})
            names = _checked(pictures)
        entry = {"image": names if len(names) > 1 else names[0], "question": question}
        return Question(Entry(index, question, entry), pictures, tuple(names))


class ItemsInMemory(ItemDataModule):
    """Pictures with labels to rank, from a list.

    Args:
        pairs: A picture, and its labels.
        model: The checkpoint; None: that of the module.
    """

    def __init__(self, pairs: Sequence[Pair], model: ModelFolder | None = None) -> None:
        super().__init__("images")
        self.pairs = pairs
        if model is not None:
            self.model = model

    def read_requests(self, skipped: list[Failure] | None) -> list[RankRequest]:
        """Check the pictures and the labels."""
        return [self._request(index, *pair) for index, pair in enumerate(self.pairs)]

    def _request(self, index: int, pictures: tuple[Picture, ...], labels: Any) -> RankRequest:
        """Rank labels for one picture, or several pictures for one text."""
        over_pictures = isinstance(labels, str)
        with within("images", f"entry {index}"):
            found = check_labels([labels] if over_pictures else labels)
            names = _checked(pictures)
        entry = {"image": names if over_pictures else names[0], "labels": [*found]}
        item = Item(Entry(index, names[0], entry), pictures, tuple(names), found)
        return request_of(item, over_pictures)


def _checked(pictures: tuple[Picture, ...]) -> list[str]:
    """Check the headers of pictures, and return their names in records."""
    for picture in pictures:
        check_picture(picture)
    return [*map(name_of, pictures)]
