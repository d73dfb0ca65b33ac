"""Model families: each adapter reads and writes one kind of Hugging Face `config.json` and names its tensors.

An adapter is a module with `decoder_config(hf) -> DecoderConfig`, `hf_config(config) -> dict`,
`names(config) -> tuple[Name, ...]` and `canonical(stored) -> str | None`, the table's name of a stored tensor (None = no part
of the text model). It raises on any field that it neither reads nor knows to be harmless, so that a model is never computed
wrongly in silence.
"""

from types import ModuleType

from w2s_jax.models.families import gemma3, llama, olmo2, qwen2, qwen3

FAMILIES: dict[str, ModuleType] = {
    "gemma3": gemma3,
    "gemma3_text": gemma3,
    "llama": llama,
    "olmo2": olmo2,
    "qwen2": qwen2,
    "qwen3": qwen3,
}
"""`model_type` of `config.json` -> adapter."""


def family(model_type: str, where: str = "config.json") -> ModuleType:
    """Finds an adapter.

    Raises:
        ValueError: no adapter reads this `model_type`.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"{where}: model_type = {model_type!r}; allowed are {sorted(FAMILIES)} "
            "(a new one is a file in w2s_jax/models/families)"
        )
    return FAMILIES[model_type]
