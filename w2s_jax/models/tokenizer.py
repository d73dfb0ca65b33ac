"""Text to tokens and back, over any fast tokenizer in a local directory; transformers is imported when first needed."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from w2s_jax.models import checkpoint

VERSION = "2"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A thin frozen wrapper; there is no padding token here, because padding is a mask everywhere in this project.

    Attributes:
        inner: a `transformers.PreTrainedTokenizerFast`.
        stop_ids: tokens that end an answer, the tokenizer's own end token first.
        bos_ids: what the tokenizer itself puts before a text: one token, or none.
        num_rows: tokens from this id on are unknown to the model, and texts that spell one are refused; None = there are none.
    """

    inner: Any
    stop_ids: tuple[int, ...]
    bos_ids: tuple[int, ...]
    num_rows: int | None = None

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Tokenizer":
        """Loads `tokenizer.json` and the files beside it; no code from the directory is run.

        Raises:
            ValueError: there is no `tokenizer.json`, or one of the files is cut off or damaged.
        """
        from transformers import PreTrainedTokenizerFast

        path = pathlib.Path(path)
        if not (path / "tokenizer.json").exists():
            raise ValueError(f"{path}/tokenizer.json does not exist; only fast tokenizers are read (transformers can convert)")
        try:
            inner = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        except Exception as error:  # a damaged file raises almost anything there
            for file in (path / "tokenizer.json", path / "tokenizer_config.json"):
                if file.exists():
                    checkpoint.read_object(file)
            raise ValueError(
                f"{path}: tokenizer.json and the files beside it make no tokenizer ({error!r}); fetch them again"
            ) from error
        return cls.of(inner, stop_ids_of(path))

    @classmethod
    def of(cls, inner: Any, stop_ids: Sequence[int] = ()) -> "Tokenizer":
        """Wraps a fast tokenizer; `stop_ids` are further stop tokens beside its own end token."""
        bare = inner.encode("a", add_special_tokens=False)
        full = inner.encode("a", add_special_tokens=True)
        before = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), 0)
        own = () if inner.eos_token_id is None else (inner.eos_token_id,)
        return cls(inner, tuple(dict.fromkeys([*own, *stop_ids])), tuple(full[:before]))

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, stop={self.stop_ids}, bos={self.bos_ids})"

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self.inner.get_vocab().values()) + 1

    def limited(self, num_rows: int) -> "Tokenizer":
        """The same tokenizer for a model that knows `num_rows` tokens.

        Some text models come with the tokenizer of their siblings that read images, whose special tokens they lack.

        Raises:
            ValueError: an ordinary token is beyond what the model knows.
        """
        special = {i for i, token in self.inner.added_tokens_decoder.items() if token.special}
        beyond = {i for i in self.inner.get_vocab().values() if i >= num_rows}
        if beyond - special or any(i >= num_rows for i in (*self.stop_ids, *self.bos_ids)):
            raise ValueError(
                f"the tokenizer has {self.vocab_size} ids, config.json has vocab_size = {num_rows}; "
                "take the tokenizer that the model was trained with"
            )
        return dataclasses.replace(self, num_rows=num_rows) if beyond else self

    def encode(self, text: str, bos: bool) -> list[int]:
        """Turns text into ids, without special tokens other than those written in it.

        Args:
            text: may spell special tokens, as a chat template does.
            bos: whether to start with the tokens that the tokenizer itself starts a text with, if it does. Pass False for a
                continuation and for the output of `chat`.
        """
        return self.encode_batch([text], bos)[0]

    def encode_batch(self, texts: Sequence[str], bos: bool) -> list[list[int]]:
        """Encodes many texts; see `encode`.

        Raises:
            ValueError: a text spells a special token that the model does not know.
        """
        if not texts:
            return []
        before = list(self.bos_ids) if bos else []
        rows = [before + ids for ids in self.inner(list(texts), add_special_tokens=False)["input_ids"]]
        if self.num_rows is not None and (odd := {i for ids in rows for i in ids if i >= self.num_rows}):
            words = self.inner.convert_ids_to_tokens(sorted(odd))
            raise ValueError(f"a text spells {words}, which this model does not know; take that out of prompt and question")
        return rows

    def decode(self, ids: Sequence[int], specials: bool = False) -> str:
        """Turns ids into text; special tokens are left out unless asked for."""
        ids = [int(i) for i in ids]
        return self.inner.decode(ids, skip_special_tokens=not specials, clean_up_tokenization_spaces=False)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """Lays messages ({"role", "content"}) out by the model's own template, up to where the assistant speaks.

        Args:
            messages: in order.
            **options: read by some templates, such as `enable_thinking=False`.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if not self.inner.chat_template:
            raise ValueError("this tokenizer has no chat template; choose a style without chat, or an instruction-tuned model")
        return self.inner.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the tokenizer's files into a directory."""
        self.inner.save_pretrained(path)


def stop_ids_of(path: pathlib.Path) -> list[int]:
    """Reads the end tokens of a model directory: `generation_config.json`, else `config.json`.

    Raises:
        ValueError: the file is no JSON object, or its end tokens are no ids.
    """
    for file in (path / "generation_config.json", path / "config.json"):
        ids = checkpoint.read_object(file).get("eos_token_id") if file.exists() else None
        if ids is not None:
            listed = ids if isinstance(ids, list) else [ids]
            if not all(isinstance(i, int) for i in listed):
                raise ValueError(f"{file}: eos_token_id = {ids!r}; allowed is a whole number, a list of them, or null")
            return listed
    return []


def word_level(words: Sequence[str], unk: str = "<unk>", eos: str = "<eos>") -> Tokenizer:
    """Builds a tokenizer whose tokens are words between white space, for models trained from scratch.

    Ids: `unk` 0, `eos` 1, then the words in the given order. Unknown words become `unk`; decoding joins words by one space.

    Raises:
        ValueError: a word is empty, holds white space, or comes twice.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    listed = [unk, eos, *words]
    if odd := [word for word in listed if not word or word.split() != [word]]:
        raise ValueError(f"{odd[0]!r} is not one word; each must be non-empty and free of white space")
    if len(set(listed)) < len(listed):
        twice = next(word for word in listed if listed.count(word) > 1)
        raise ValueError(f"{twice!r} comes twice; each word, unk and eos must be different")
    inner = Inner(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token=unk))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer.of(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=unk, eos_token=eos))
