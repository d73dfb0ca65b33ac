"""Which layers look back over a window only: `layer_types` of `config.json` to and from `DecoderConfig.pattern`."""

from collections.abc import Sequence

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families.fields import LIST, Fields

VERSION = "1"

KIND = {"full_attention": "global", "sliding_attention": "local"}


def kinds(fields: Fields, num_layers: int) -> tuple[str, ...] | None:
    """Reads the kind of each layer; None where they are not listed.

    Raises:
        ValueError: a kind is unknown, or there are more or fewer of them than layers.
    """
    listed = fields.take("layer_types", LIST, None)
    if listed is None:
        return None
    if odd := [kind for kind in listed if kind not in tuple(KIND)]:
        raise ValueError(f"{fields.where}: layer_types holds {odd[0]!r}; allowed are {', '.join(map(repr, KIND))}")
    if len(listed) != num_layers:
        raise ValueError(
            f"{fields.where}: layer_types lists {len(listed)} layers, num_hidden_layers = {num_layers}; correct one"
        )
    return tuple(KIND[kind] for kind in listed)


def layer_types(config: DecoderConfig) -> list[str]:
    """Writes what `kinds` reads."""
    word = {kind: name for name, kind in KIND.items()}
    return [word[kind] for kind in config.kinds]


def repeats(kinds: Sequence[str], pattern: Sequence[str]) -> bool:
    """Says whether layer after layer follows a repeated pattern.

    >>> repeats(["local", "global", "local"], ["local", "global"])
    True
    """
    return all(kind == pattern[layer % len(pattern)] for layer, kind in enumerate(kinds))


def shortest_pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """Finds the shortest pattern that these layers repeat.

    >>> shortest_pattern(["local", "local", "global", "local", "local"])
    ('local', 'local', 'global')
    """
    return next(tuple(kinds[:n]) for n in range(1, len(kinds) + 1) if repeats(kinds, kinds[:n]))
