"""Chess puzzles: a weak teacher proposes moves, a strong student learns the trusted ones.

Command:  python -m experiments.main --config=experiments/configs/chess.py:scratch --config.tasks.root=DATA
          python -m experiments.main --config=experiments/configs/chess.py:qwen3_0.6b_14b --config.tasks.root=DATA
Device:   `scratch` (two small decoders trained from scratch on the puzzles) a CPU, in hours; an accelerator for the Qwen3 pair.
Needs:    pip install 'w2s_jax[chess]'; for labels better than gold, --config.tasks.engine=auto (Stockfish, say).
Expected: of Qwen3 0.6B -> 14B (arXiv 2606.01000 and its authors' page): a student with 44.1 % best moves beside 39.9 % after
          gold labels, and about 32 % of the chosen labels that differ from gold better than it. Not reproduced here.

Source = the validation puzzles, target and corpus = the training puzzles, test = the test puzzles of local files. The hub has
one split: there, give slices of it, --config.tasks.source="('lichess_puzzles:train[:20000]',)" and so on. Which of them, the
number of labels, rates, rank and layout are our proposals: the paper does not give them.
"""

from experiments.configs import base
from experiments.configs.quickstart import corpus_model

PAIRS = {  # name: (teacher, student)
    "scratch": ("pretrain:weak", "pretrain:strong"),
    "qwen3_0.6b_14b": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-14B"),
}


def get_config(arg=None):
    """`arg`: a pair's name, `seeds=K`."""
    given = base.words(arg, variant="scratch", seeds=1)
    c = base.get_config()
    c.name = f"chess_{given['variant']}"
    c.domain = "strategy games"
    c.seeds = tuple(range(given["seeds"]))
    c.teacher.model, c.student.model = base.choose("pair", given["variant"], PAIRS)
    c.tasks = base.ConfigDict({"name": "chess", **base.keywords("task", "chess")})
    c.tasks.update(source=("lichess_puzzles:validation",), target=("lichess_puzzles:train",), test=("lichess_puzzles:test",))
    if given["variant"] == "scratch":
        scratch(c)
    else:
        pretrained(c)
    c.methods = ("naive", "confidence", "ntf", *base.CONTROLS, "gold", "gold_on_ntf")
    return c


def scratch(c):
    """Small decoders that read positions as words, a move as one; no weights are downloaded."""
    c.tasks.update(max_target=12_000, max_test=4000, layout="words", corpus=("lichess_puzzles:train",))
    c.pretrain.weak = corpus_model("weak", width=64, num_layers=2, head_dim=16, mlp_width=192, epochs=10.0)
    c.pretrain.strong = corpus_model("strong", width=128, num_layers=4, head_dim=32, mlp_width=384, epochs=6.0)
    shape = base.shape(row_length=256, batch_rows=16, max_segments=12)
    for section in (*c.pretrain.values(), c.student):
        section.training.shape = shape
    for who in ("teacher", "student"):
        c[who].style = "direct"
        c[who].shape = shape
    c.pretrain.strong.training.lr = 1e-3
    c.student.training.update(epochs=2.0, lr=1e-4, lora_rank=0)
    c.select.n = 3000


def pretrained(c):
    """Language models that read FEN and choose among the legal moves."""
    c.tasks.update(max_source=3000, max_target=10_000, max_test=2000)
    for who in ("teacher", "student"):
        c[who].style = "direct"
        c[who].shape = base.shape(row_length=1024, batch_rows=8, max_segments=16)
    c.select.n = 2000
