"""A task and a config so small that a whole run takes seconds. For tests of the path, not of the effect."""

import itertools

import numpy as np

from experiments.configs import base
from w2s_jax.types import Gold, Question

VERSION = "1"
DIGITS = tuple("01234")
NAMES = tuple("abcdefghij")


class Toy:
    """`name x + y =` modulo five; the weak corpus knows no sums above four."""

    def __init__(self, seed: int, num_source: int, num_target: int, num_test: int, target_gold: str, interface: str):
        rows = [(f"{n} {x} + {y} =", str((x + y) % 5)) for n, x, y in itertools.product(NAMES, range(5), range(5))]
        order = np.random.default_rng(0).permutation(len(rows))
        rows = [rows[i] for i in order]
        cuts = np.cumsum([0, num_test, num_source, num_target])
        self.rows = dict(zip(("test", "source", "target"), (rows[a:b] for a, b in itertools.pairwise(cuts)), strict=True))
        self.rest, self.target_gold, self.seed, self.interface = rows[cuts[-1] :], target_gold, seed, interface

    def questions(self, split):
        return tuple(Question(prompt, "toy", prompt, self.options) for prompt, _ in self.rows[split])

    @property
    def options(self):
        return DIGITS if self.interface == "choice" else ()

    def gold(self, split):
        rows = self.rows[split]
        if split == "target" and self.target_gold == "none":
            return None
        if split == "target" and self.target_gold == "wrong":
            rows = [(prompt, str((int(final) + 1) % 5)) for prompt, final in rows]
        return Gold(tuple(prompt for prompt, _ in rows), tuple((final,) for _, final in rows))

    def extract(self, text):
        return next((word for word in text.split() if word in DIGITS), "")

    def corpus(self, name):
        rows = [(p, f) for p, f in self.rest if name == "strong" or int(p.split()[1]) + int(p.split()[3]) < 5]
        return tuple(Question(p, "toy", p, self.options) for p, _ in rows), tuple(f for _, f in rows)

    def vocabulary(self):
        return (*NAMES, "+", "=", *DIGITS)


def make(*, seed: int, num_source=60, num_target=60, num_test=40, target_gold="true", interface="choice") -> Toy:
    return Toy(seed, num_source, num_target, num_test, target_gold, interface)


def get_config(arg=None):
    """All methods of the quickstart, in seconds."""
    given = base.words(arg, target_gold="true", interface="choice", seeds=1, objective="sft")
    c = base.get_config()
    c.name = "toy"
    c.seeds = tuple(range(given["seeds"]))
    sizes = {"num_source": 60, "num_target": 60, "num_test": 40}
    c.tasks = base.ConfigDict(
        {"name": "tests.toy", **sizes, "target_gold": given["target_gold"], "interface": given["interface"]}
    )
    c.pretrain.weak = section("weak", width=16, num_layers=1)
    c.pretrain.strong = section("strong", width=32, num_layers=2)
    for who, model in (("teacher", "pretrain:weak"), ("student", "pretrain:strong")):
        c[who].update(model=model, style="direct", max_new_tokens=3)
        c[who].shape = base.shape(row_length=32, batch_rows=4, max_segments=5)
    c.student.training.update(epochs=2.0, lora_rank=0, lr=1e-3, checkpoint_every=4)
    c.student.training.shape = base.shape(row_length=32, batch_rows=4, max_segments=5)
    c.trust.neural.update(width=16, blocks=1, epochs=3, batch_rows=16)
    c.select.n = 20
    c.student.objective = given["objective"]
    c.student.grpo.update(group_size=4, questions=5, max_new_tokens=2, inner_steps=2, beta=0.01)  # 8 rounds
    c.student.num_slots = 16
    return c


def section(corpus, *, width, num_layers):
    c = base.pretraining(corpus)
    c.decoder.update(width=width, num_layers=num_layers, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=2 * width)
    c.training.update(epochs=6.0, lr=1e-2, checkpoint_every=10)
    c.training.shape = base.shape(row_length=32, batch_rows=4, max_segments=5)
    return c
