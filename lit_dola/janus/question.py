"""From a question about pictures to token ids: DeepSeek's conversation for image understanding."""

from pathlib import Path

from lit_dola.errors import UserError
from lit_dola.janus.tokenizer import PromptEncoder, Roles

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content"
    " that the user provides, and assist the user with a variety of tasks using natural language."
)
"""The system prompt of ``VLChatProcessor`` in DeepSeek's code, for the template ``deepseek``."""
_LLAVA_IMAGE = "<image>"
"""LLaVA's placeholder of a picture."""
_SPECIAL_TOKENS = {
    "image_token": "<image_placeholder>",
    "eoi_token": "<end_of_image>",
    "eos_token": "<｜end▁of▁sentence｜>",
}


class QuestionEncoder(PromptEncoder):
    """Encodes questions about pictures as DeepSeek's ``inference.py`` does.

    Args:
        folder: Folder of the checkpoint, in either layout.
        tokens_per_picture: Embeddings that the aligner returns per picture.
        roles: As :class:`lit_dola.janus.tokenizer.PromptEncoder`.
        name: The name by which the user gave the checkpoint; the folder's own if None.
        vocab_size: Text tokens that the model can embed; None: not checked.
        system_prompt: What the conversation starts with; empty: nothing.

    Raises:
        UserError: As :class:`lit_dola.janus.tokenizer.PromptEncoder`.
    """

    def __init__(
        self,
        folder: Path,
        tokens_per_picture: int,
        roles: Roles = "auto",
        name: str | None = None,
        vocab_size: int | None = None,
        system_prompt: str = SYSTEM_PROMPT,
    ) -> None:
        super().__init__(folder, roles, name, vocab_size)
        self.tokens_per_picture = tokens_per_picture
        self.system_prompt = system_prompt
        self._image_token = self._special_token("image_token", _SPECIAL_TOKENS)
        ids = {name: self._special_id(name, _SPECIAL_TOKENS) for name in _SPECIAL_TOKENS}
        self.image_token_id, self.eoi_token_id = ids["image_token"], ids["eoi_token"]
        self.eos_token_id = ids["eos_token"]

    def question_text(self, question: str, pictures: int = 1) -> str:
        """Return the conversation up to the answer, with one placeholder per picture.

        Placeholders stand before the question, one per line, unless the question itself says where
        its pictures are, with this placeholder or as many ``<image>``, which is LLaVA's.
        """
        if question.count(_LLAVA_IMAGE) == pictures:
            question = question.replace(_LLAVA_IMAGE, self._image_token)
        given = question.count(self._image_token)
        if given not in (0, pictures):
            raise UserError(
                f"the question has {given} {self._image_token}",
                f"none, or one per picture: {pictures}",
            )
        placeholders = "" if given else f"{self._image_token}\n" * pictures
        turn = self.text(placeholders + question)
        return f"{self.system_prompt}\n\n{turn}" if self.system_prompt else turn

    def encode_question(self, question: str, pictures: int = 1) -> list[int]:
        """Return token ids from BOS to the end of the prompt.

        A picture is begin-of-image, ``tokens_per_picture`` times ``image_token_id``, whose
        embeddings the picture's own replace, and end-of-image.
        """
        picture = [
            self.boi_token_id,
            *[self.image_token_id] * self.tokens_per_picture,
            self.eoi_token_id,
        ]
        ids = [self.bos_token_id]
        for token in self.encode_text(self.question_text(question, pictures)):
            ids += picture if token == self.image_token_id else [token]
        return ids
