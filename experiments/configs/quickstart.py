"""The embedded default: a weak and a strong model trained from scratch, a task of our own, nothing downloaded.

Command:  python -m experiments.main            (the same as --config=experiments/configs/quickstart.py)
          python -m experiments.main --config=experiments/configs/quickstart.py:seeds=5
          python -m experiments.main --config=experiments/configs/quickstart.py:objective=grpo
          python -m experiments.main --config=experiments/configs/quickstart.py:chain=10
Device:   a laptop's CPU; wall time and the expected table stand in README.md, with the command that gave them.

The task is `w2s_jax/tasks/arithmetic.py`: the weak teacher knows what is asked but its corpus holds a slip on one kind of
question; the strong student has seen every rule but not which convention is asked for. Naive labels teach it the slip,
trusted ones do not. Sizes and rates were tuned on seeds 100-104; reported seeds are 0-4.
"""

from experiments.configs import base


def get_config(arg=None):
    """`arg`: `seeds=K` runs seeds 0..K-1; `first=S` starts at S; `objective=grpo` teaches by reward; `chain=K` generations."""
    given = base.words(arg, seeds=1, first=0, objective="sft", chain=0)
    c = base.get_config()
    base.choose("objective", given["objective"], {"sft": None, "grpo": None})
    c.name = "quickstart" if given["seeds"] == 1 else f"quickstart_{given['seeds']}_seeds"
    c.domain = "arithmetic"
    c.seeds = tuple(range(given["first"], given["first"] + given["seeds"]))
    c.tasks = base.ConfigDict({"name": "arithmetic", **base.keywords("task", "arithmetic")})

    c.pretrain.weak = corpus_model("weak", width=12, num_layers=1, head_dim=8, mlp_width=24, epochs=32.0)
    c.pretrain.strong = corpus_model("strong", width=64, num_layers=2, head_dim=16, mlp_width=192, epochs=8.5)
    for who in ("teacher", "student"):
        c[who].style = "direct"
        c[who].shape = base.shape(row_length=64, batch_rows=64, max_segments=8)
    c.teacher.model = "pretrain:weak"
    c.student.model = "pretrain:strong"

    c.select.n = 1500
    c.student.training.update(epochs=2.0, lr=2e-4, warmup_frac=0.16, lora_rank=0)
    c.student.training.shape = base.shape(row_length=64, batch_rows=4, max_segments=8)  # 32 questions a step
    c.student.training.optimizer.update(b2=0.99, weight_decay=0.01)
    if given["objective"] == "grpo":
        by_reward(c)
    if given["chain"]:
        chained(c, given["chain"])
    return c


def by_reward(c):
    """The student writes answers of one word, and learns from which of them agree with the trusted weak answer.

    What it never writes it can never learn, so its corpus leaves it in doubt about tongue and slip. A higher rate (1e-3) lets
    NTF's student forget the kind of question that its labels leave out.
    """
    c.name += "_grpo"
    c.tasks.update(loose=True, slip_frac=0.4)
    c.student.objective = "grpo"
    c.student.grpo.update(group_size=8, questions=64, max_new_tokens=1)
    c.student.num_slots = 512
    c.student.training.update(epochs=3.0, lr=5e-4)
    c.student.training.shape = base.shape(row_length=64, batch_rows=16, max_segments=8)


def chained(c, generations):
    """A chain of fresh strong models, each taught few labels by the one before it.

    All generations begin with the same untaught model: what a chain gains or loses can only have come through the labels. 1,500
    or 800 labels bring a student to the ceiling in one link, and a chain has nothing left to show; with 300, in as many steps,
    there is a way to go (and with 100 the second teacher is too narrow to go on). Each generation asks a fresh slice of 1,600
    questions; their groups are the 200 sums, which all roles share, so slices share them too.
    """
    c.name += f"_chain{generations}"
    c.tasks.num_target, c.tasks.num_test = 1600 * generations, 2000
    c.chain.models = ("pretrain:strong",) * generations
    c.chain.whole_groups = False
    c.methods = ("naive", "ntf", "gold")
    c.select.n = 300
    c.student.training.epochs = 10.0


def corpus_model(corpus, *, width, num_layers, head_dim, mlp_width, epochs):
    """A small decoder of the Qwen3 architecture and its training from scratch."""
    c = base.pretraining(corpus)
    c.decoder.update(width=width, num_layers=num_layers, num_heads=4, num_kv_heads=2, head_dim=head_dim, mlp_width=mlp_width)
    c.training.update(epochs=epochs, lr=3e-3, warmup_frac=0.03)
    c.training.shape = base.shape(row_length=64, batch_rows=16, max_segments=8)  # 128 questions a step
    c.training.optimizer.update(b2=0.99, weight_decay=0.01)
    return c
