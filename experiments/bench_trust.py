"""The bench `trust`: many trust heads in one program, beside the same heads one after another, ours and torch's.

Heads differ in seed and rate. `one by one` is our program for one head, compiled once and called for each; torch trains the
same architecture by the same recipe with the loop that one would write (early stopping by held-back AUC each epoch; Platt
scaling, of no weight, is left out). The unit that JSON calls a token is a row of a training batch. Rows are made up: hidden
states whose first feature tells right labels from wrong ones, with noise.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import main as cli
from experiments import turns

SHARE = 0.6  # of right labels
SIGNAL = 1.5  # standard deviations between right and wrong labels
SAME = 1e-3  # held-back AUC by which any of our own heads may differ: two of its rows may change places
ALIKE = 0.03  # mean held-back AUC by which another library's heads may differ: their draws are others


def trust(config, *, rows: int, features: int, num_heads: int, repeats: int, torch_heads: Callable) -> dict[str, Any]:
    """Rows per second of training `num_heads` heads of config.trust.neural.

    Args:
        config: its trust.neural section says what a head is and how it is trained.
        rows, features: of the made-up source.
        num_heads: of the grid.
        repeats: turns that count.
        torch_heads: (settings, x, correct, x_val, correct_val) -> contestant, see `peers.trust_heads`.
    """
    import jax

    from w2s_jax import metrics, plugins
    from w2s_jax.settings import keywords_of
    from w2s_jax.trust import neural
    from w2s_jax.types import Answers, Evidence

    rng = np.random.default_rng(0)
    correct = rng.random(rows) < SHARE
    x = rng.normal(size=(rows, 1, features)).astype(np.float32)
    x[:, 0, 0] += SIGNAL * correct
    ids = tuple(map(str, range(rows)))
    evidence = Evidence(Answers(ids, ids, ids), x)
    base = keywords_of(config.trust, "neural")
    settings = [base | {"seed": h, "lr": base["lr"] * (1 + h % 4)} for h in range(num_heads)]
    heads = [plugins.make("trust", "neural", **one) for one in settings]
    key = jax.random.key(0)
    held_back = neural.held_back_rows(heads[0], evidence, key)
    source, _ = neural.split_source(heads[0], evidence, correct, key)
    source = jax.device_put(source)
    static = {name: getattr(heads[0], name) for name in ("head", "epochs", "batch_rows")}
    everyone, each = neural.varied(heads, key), [neural.varied([head], key) for head in heads]

    def together():
        return np.asarray(neural.train_heads(source, *everyone, **static)[1]["quality"]).max(1)

    def one_by_one():
        records = [neural.train_heads(source, *one, **static)[1]["quality"] for one in each]
        return np.concatenate([np.asarray(record) for record in records]).max(1)

    parts = (x[~held_back, 0], correct[~held_back], x[held_back, 0], correct[held_back])
    contestants = {"ours": together, "ours, one by one": one_by_one, "torch": torch_heads(settings, *parts, auc=metrics.auc)}
    before = neural.train_heads._cache_size()
    seconds, quality = turns.take_turns(contestants, repeats)
    programs = neural.train_heads._cache_size() - before - 1  # that of one head alone
    for name, reached in quality.items():
        gap = np.abs(reached - quality["ours"]).max() if "ours" in name else abs(reached.mean() - quality["ours"].mean())
        cli.say(f"{name}: held-back AUC {reached.mean():.4f} on average; differs from ours by {gap:.1e}")
        if gap > (SAME if "ours" in name else ALIKE):
            raise ValueError(f"{name} and ours differ by {gap:.1e} in held-back AUC: they do not do the same work")
    trained = max(int((~held_back).sum()) // base["batch_rows"], 1) * base["batch_rows"] * base["epochs"] * num_heads
    shape = f"{base['head']}, width {base['width']}, {base['blocks']} blocks, {base['epochs']} epochs"
    case = f"{num_heads} heads ({shape}), {rows} rows of {features} features; tokens are rows trained on"
    found = turns.summary("trust", case, seconds, trained)
    ours = statistics.median(seconds["ours"])
    found["ratios"] = {name: round(statistics.median(each) / ours, 3) for name, each in seconds.items() if name != "ours"}
    return found | {"compilations": programs}
