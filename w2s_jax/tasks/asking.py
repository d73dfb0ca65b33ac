"""Questions as tokens: one model's way of asking, its layout (`prompts`) and its tokenizer together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from w2s_jax.tasks import prompts
from w2s_jax.types import Question

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question as a model reads it.

    Attributes:
        id: the question's.
        prompt: its tokens.
        candidates: for each option the tokens that may follow; empty in free generation.
        num_bytes: UTF-8 length of each candidate's text.
    """

    id: str
    prompt: list[int]
    candidates: list[list[int]]
    num_bytes: list[int]


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        tokenizer: the model's (`models.tokenizer.Tokenizer`).
        style: a name in `prompts.STYLES`.
        chat: whether the model's chat template is laid around it.
        context: the longest sequence that the model was made for, in tokens.
        demonstrations: answered questions shown before each one, from the labelled source only.
    """

    tokenizer: Any
    style: str
    chat: bool
    context: int
    demonstrations: tuple[tuple[Question, str], ...] = ()

    def ask(self, question: Question) -> Asked:
        """The question's tokens.

        Raises:
            ValueError: the tokenizer does not know an option, or the question with its longest option exceeds the model's
                context.
        """
        ask = self._render(question)
        candidates = self.tokenizer.encode_batch(ask.candidates, bos=False)
        for text, ids in zip(ask.candidates, candidates, strict=True):
            if not ids or set(ids) == {self.tokenizer.inner.unk_token_id}:
                raise ValueError(
                    f"question {question.id!r}: the option {text!r} has no tokens, or unknown ones only, under this model's "
                    "tokenizer; mend the row, or choose another style or model in the config"
                )
        prompt = self._encode(ask)
        self._refuse_long(question, len(prompt) + max(map(len, candidates), default=0))
        return Asked(question.id, prompt, candidates, [len(text.encode()) for text in ask.candidates])

    def option_lengths(self, questions: Sequence[Question]) -> list[list[int]]:
        """How many tokens each question's candidates have, as `ask` gives them; each different text is looked at once."""
        texts = [self._render(question).candidates for question in questions]
        different = list(dict.fromkeys(text for options in texts for text in options))
        length = dict(zip(different, map(len, self.tokenizer.encode_batch(different, bos=False)), strict=True))
        return [[length[text] for text in options] for options in texts]

    def answer(self, question: Question, final: str) -> tuple[list[int], list[int]]:
        """(prompt tokens, answer tokens); a free answer is closed by the stop token, a chosen option stands alone."""
        ask = self._render(question)
        completion = self.tokenizer.encode(prompts.completion(ask, question, final), bos=False)
        stop = [] if question.options else list(self.tokenizer.stop_ids[:1])
        prompt = self._encode(ask)
        self._refuse_long(question, len(prompt) + len(completion) + len(stop))
        return prompt, completion + stop

    def reply(self, question: Question, text: str) -> tuple[list[int], list[int]]:
        """(prompt tokens, tokens of a text given as the answer), for a judge to read; to a choice, `text` is an option.

        Under a chat template the stop token closes the turn; without one, nothing is added.
        """
        ask = self._render(question)
        written = prompts.completion(ask, question, text) if question.options else ask.lead + text
        prompt, completion = self._encode(ask), self.tokenizer.encode(written, bos=False)
        stop = list(self.tokenizer.stop_ids[:1]) if self.chat else []
        self._refuse_long(question, len(prompt) + len(completion) + len(stop))
        return prompt, completion + stop

    def _refuse_long(self, question: Question, length: int) -> None:
        if length > self.context:
            raise ValueError(
                f"question {question.id!r} has {length} tokens, the model's context (max_position_embeddings) is "
                f"{self.context}: take the question out, or show fewer demonstrations (shots)"
            )

    def _render(self, question: Question) -> prompts.Ask:
        return prompts.render(question, self.style, self.demonstrations, self.tokenizer.chat if self.chat else None)

    def _encode(self, ask: prompts.Ask) -> list[int]:
        return self.tokenizer.encode(ask.prompt, bos=not self.chat)  # a chat template writes its own first token
