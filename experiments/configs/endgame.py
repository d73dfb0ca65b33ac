"""Four in a row on four by four squares, solved: two models from scratch, and labels that may be as good as gold.

Command:  python -m experiments.main --config=experiments/configs/endgame.py
          python -m experiments.main --config=experiments/configs/endgame.py:seeds=5
          python -m experiments.main --config=experiments/configs/endgame.py:gold=outcome
Device:   a laptop's CPU, a quarter of an hour a seed beside other work; nothing is downloaded.

The task is `w2s_jax/tasks/endgame.py`: the weak teacher plays the game that is asked for, but looks one stone ahead; the
strong student plays either of two games well and does not know which is asked for. Gold holds one best move of each position,
the test accepts all of them. Sizes and rates are our proposals, chosen on seed 100.
"""

from experiments.configs import base
from experiments.configs.quickstart import corpus_model


def get_config(arg=None):
    """`arg`: `seeds=K` runs seeds 0..K-1; `first=S` starts at S; `gold=fastest|outcome`, see the task."""
    given = base.words(arg, seeds=1, first=0, gold="fastest")
    c = base.get_config()
    base.choose("gold", given["gold"], {"fastest": None, "outcome": None})
    c.name = "endgame" if given["gold"] == "fastest" else f"endgame_{given['gold']}"
    c.domain = "strategy games"
    c.seeds = tuple(range(given["first"], given["first"] + given["seeds"]))
    c.tasks = base.ConfigDict({"name": "endgame", **base.keywords("task", "endgame"), "gold": given["gold"]})
    c.tasks.update(num_source=3000, num_target=6000, num_weak=3000)

    c.pretrain.weak = corpus_model("weak", width=24, num_layers=1, head_dim=16, mlp_width=72, epochs=40.0)
    c.pretrain.strong = corpus_model("strong", width=96, num_layers=3, head_dim=16, mlp_width=288, epochs=12.0)
    for who in ("teacher", "student"):
        c[who].style = "direct"
        c[who].shape = base.shape(row_length=128, batch_rows=32, max_segments=8)
    for section in c.pretrain.values():
        section.training.shape = base.shape(row_length=128, batch_rows=16, max_segments=8)  # 128 questions a step
    c.teacher.model = "pretrain:weak"
    c.student.model = "pretrain:strong"

    c.select.n = 1200
    c.student.training.update(epochs=6.0, lr=1e-3, warmup_frac=0.16, lora_rank=0)
    c.student.training.shape = base.shape(row_length=128, batch_rows=4, max_segments=8)  # 32 questions a step
    c.student.training.optimizer.update(b2=0.99, weight_decay=0.01)
    c.methods = ("naive", "confidence", "ntf", *base.CONTROLS, "gold", "gold_on_ntf")
    return c
