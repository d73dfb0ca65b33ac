"""Strict reading of `config.json`: a field is read, checked, known to be harmless, or refused by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from w2s_jax.models import rope

VERSION = "2"

REQUIRED = object()

KINDS = {
    "a whole number from 0": lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0,
    "a whole number from 1": lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1,
    "a number above 0": lambda x: isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf,
    "true or false": lambda x: isinstance(x, bool),
    "an object": lambda x: isinstance(x, dict),
    "a list": lambda x: isinstance(x, list),
    "anything": lambda x: True,
}
"""What a field may hold, in words -> whether a value is that."""

COUNT, WHOLE, NUMBER, FLAG, OBJECT, LIST, ANY = KINDS

HARMLESS = frozenset(
    """
    _name_or_path _model_name_or_path _attn_implementation _attn_implementation_autoset _commit_hash
    add_cross_attention bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label is_llama_config label2id length_penalty max_length max_window_layers min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version
    typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()
)
"""Fields about files, training history, classification heads or generation: they do not change the forward pass."""


class Fields:
    """A `config.json` of which every field must be accounted for."""

    def __init__(self, hf: Mapping[str, Any], where: str = "config.json"):
        self.hf, self.where, self.seen = dict(hf), where, set(HARMLESS)

    def take(self, name: str, kind: str, default: Any = REQUIRED) -> Any:
        """Reads a field of one of `KINDS`; null counts as absent.

        Raises:
            ValueError: it is absent and has no default, or holds something else.
        """
        self.seen.add(name)
        value = self.hf.get(name)
        if value is None:
            if default is REQUIRED:
                raise ValueError(f"{self.where}: {name} is missing; allowed is {kind}, such as transformers writes")
            return default
        if not KINDS[kind](value):
            raise ValueError(f"{self.where}: {name} = {value!r}; allowed is {kind}")
        return value

    def only(self, **allowed: tuple) -> None:
        """Checks that fields, where present, have one of the values that the decoder can compute.

        Raises:
            ValueError: one has not.
        """
        for name, values in allowed.items():
            value = self.take(name, ANY, None)
            if value is not None and value not in values:
                listed = " or ".join(map(repr, values)) or "null"
                raise ValueError(f"{self.where}: {name} = {value!r} is not supported; allowed is {listed}")

    def rope(self) -> dict[str, Any]:
        """Reads the rotation in the style of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).

        Raises:
            ValueError: the frequencies are scaled in a way that is not computed, or partial, or the two styles disagree.
        """
        styles = {style: self.take(style, OBJECT, {}) for style in ("rope_scaling", "rope_parameters")}
        theta, scaling = self.rotation("rope_theta", 10_000.0, styles)
        return dict(rope_theta=theta, rope_scaling=scaling)

    def rotation(self, base: str, default: float, styles: Mapping[str, Mapping[str, Any]]) -> tuple[float, Any]:
        """Reads one rotation that may be spelt in several places.

        Args:
            base: field that holds the base frequency in the style of transformers 4.
            default: the base, where no place names it.
            styles: name -> what stands there; an empty object says nothing.

        Returns:
            The base frequency, and what scales it (None = nothing).

        Raises:
            ValueError: see `rope`.
        """
        bases, scalings = {self.take(base, NUMBER, None)}, set()
        for style, value in styles.items():
            inner = Fields(value, f"{self.where}: {style}")
            # "type" is the older spelling of "rope_type".
            inner.only(rope_type=tuple(SCALINGS), type=tuple(SCALINGS), partial_rotary_factor=(1.0,))
            bases.add(inner.take("rope_theta", NUMBER, None))
            if value:
                scalings.add(SCALINGS[value.get("rope_type") or value.get("type") or "default"](inner))
            inner.close()
        found = {float(base) for base in bases - {None}} or {default}
        if len(found) > 1:
            raise ValueError(f"{self.where}: {base} is given as {sorted(found)}; keep one of them")
        if len(scalings) > 1:
            listed = " and ".join(style for style, value in styles.items() if value)
            raise ValueError(f"{self.where}: {listed} scale the frequencies differently; keep one of them")
        return found.pop(), scalings.pop() if scalings else None

    def close(self) -> None:
        """Refuses whatever is left.

        Raises:
            ValueError: a field was neither read nor is harmless.
        """
        left = {name: self.hf[name] for name in sorted(set(self.hf) - self.seen) if self.hf[name] is not None}
        if left:
            listed = ", ".join(f"{name} = {value!r}" for name, value in left.items())
            raise ValueError(
                f"{self.where}: nothing reads {listed}; allowed are null, or removing the field if it does not change the "
                "forward pass (then add it to HARMLESS in w2s_jax/models/families/fields.py)"
            )


def linear(inner: Fields) -> rope.Linear:
    """Reads `rope_type` "linear"."""
    return rope.Linear(float(inner.take("factor", NUMBER)))


def llama3(inner: Fields) -> rope.Llama3:
    """Reads `rope_type` "llama3"."""
    low, high = (float(inner.take(f"{end}_freq_factor", NUMBER)) for end in ("low", "high"))
    return rope.Llama3(float(inner.take("factor", NUMBER)), low, high, inner.take("original_max_position_embeddings", WHOLE))


SCALINGS: Mapping[str, Callable[[Fields], rope.Scaling | None]] = {
    "default": lambda inner: None,
    "linear": linear,
    "llama3": llama3,
}
"""`rope_type` -> reader of the fields beside it."""


def hf_scaling(scaling: rope.Scaling | None) -> dict[str, Any]:
    """Writes what `SCALINGS` reads."""
    if isinstance(scaling, rope.Linear):
        return dict(rope_type="linear", factor=scaling.factor)
    if isinstance(scaling, rope.Llama3):
        return dict(
            rope_type="llama3",
            factor=scaling.factor,
            low_freq_factor=scaling.low,
            high_freq_factor=scaling.high,
            original_max_position_embeddings=scaling.original,
        )
    return dict(rope_type="default")
