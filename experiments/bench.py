"""Throughput beside the libraries that people would use instead, on the same weights, the same rows and the same machine.

    python -m experiments.bench hidden --config=experiments/configs/world_knowledge.py \
        --config.tasks.root=DATA --config.teacher.model=DIR [--rows=200] [--repeats=5] [--json=FILE]
    python -m experiments.bench sft    ... --config.student.model=DIR
    python -m experiments.bench decode ... --config.student.model=DIR [--prompts=FILE] [--notunix]
    python -m experiments.bench grpo   ... --config.student.model=DIR --config.student.training.lora_rank=0 [--prompts=FILE]
    python -m experiments.bench trust  --rows=2048 [--features=256] [--heads=64] [--config.trust.neural.width=64 ...]

`hidden` is the teacher pass (stage observe); its peer is transformers. `sft` is LoRA training (stage teach); its peers are
transformers + peft, and these on rows packed by TRL. Peers get the rows in order of arrival and sorted by length, both padded
to the longest of a batch; the ratio is against the best of them. `decode` is writing and `grpo` a step of learning by what is
written (`bench_writing.py`); their peers are transformers and google-tunix, which gets an environment of its own. `trust` is
many trust heads in one program (`bench_trust.py`), beside the same heads one after another and beside torch. Contestants take
turns, one pass over all rows each; the first turn (compilation, warm-up) does not count. Tokens are real ones, padding is
not counted. On an accelerator `hidden` and `sft` give the share of its own matmul ceiling that is used (MFU) too. The peers
need `pip install -e '.[bench]'`.
"""

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from experiments import bench_trust, bench_writing, result, turns
from experiments import main as cli

FLAGS = flags.FLAGS
ROWS = flags.DEFINE_integer("rows", 200, "Questions of the target, drawn at random.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Turns that count.", lower_bound=1)
PEER_ROWS = flags.DEFINE_integer("peer_rows", 8, "Rows of a peer's batch.", lower_bound=1)
PROMPTS = flags.DEFINE_string("prompts", "", "decode, grpo: lines of JSON with a `problem`, instead of the target's questions.")
TUNIX = flags.DEFINE_bool("tunix", True, "decode: google-tunix takes part.")
FEATURES = flags.DEFINE_integer("features", 256, "trust: of a hidden state.", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 64, "trust: heads of the grid.", lower_bound=1)
STILL = 0.0
"""The learning rate: every step is taken in full, but nothing moves, so that the loss of a pass is the same however its rows
are batched, and shows that all contestants do the same work."""


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in BENCHES:
        raise app.UsageError(f"name one of {', '.join(BENCHES)} after experiments.bench")
    cli.guard(lambda: tell(BENCHES[argv[1]](cli.CONFIG.value)))


def tell(found: dict[str, Any]) -> None:
    """The result is the last line of standard output, and the file of --json."""
    result.keep(found)
    print(json.dumps(found))


def hidden(config) -> dict[str, Any]:
    """Tokens/s of the teacher pass: the last layer's state at the last token of each row, on the host."""
    import numpy as np
    from etils import epath

    from w2s_jax import features
    from w2s_jax.packing import Shape
    from w2s_jax.settings import compute_of
    from w2s_jax.types import Ragged, Rollout

    run, model, rows = opened(config, "teacher")
    token = [prompt + completion for prompt, completion in rows]
    section = config.teacher
    lm = run.load(model, section.param_dtype)
    shape, compute = Shape(**section.shape), compute_of(run.mesh, section)
    empty = Ragged.of([[] for _ in rows], np.int32)
    rollout = Rollout(Ragged.of([p for p, _ in rows], np.int32), Ragged.of([c for _, c in rows], np.int32), empty)

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            folder = epath.Path(folder)
            kw = dict(layers=(-1,), token="content", shape=shape, compute=compute, out=folder, partial=folder)
            return np.array(features.observe(lm, rollout, **kw))[:, 0]

    contestants = {"ours": ours, **peers().hidden(model.folder, token, rows=PEER_ROWS.value, dtype=section.dtype)}
    seconds, results = turns.take_turns(contestants, REPEATS.value)
    for name, theirs in results.items():
        gap = np.abs(theirs - results["ours"]).max() / np.abs(theirs).max()
        cli.say(f"{name}: largest difference from ours {gap:.1e}")
        if gap > (1e-3 if section.dtype == "float32" else 0.1):
            raise ValueError(f"{name} and ours disagree by {gap:.1e}: their speeds cannot be compared")
    case = f"{model.name}, {len(rows)} rows of {statistics.mean(map(len, token)):.0f} tokens, {section.dtype}"
    return summary("hidden", case, seconds, sum(map(len, token)), forward_flops(lm.config), section.dtype)


def sft(config) -> dict[str, Any]:
    """Tokens/s of LoRA training, forward, backward and update; the loss is that of the answers' tokens."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from w2s_jax import plugins
    from w2s_jax.packing import Shape
    from w2s_jax.settings import compute_of, training_of
    from w2s_jax.student import trainer
    from w2s_jax.types import Answers, Lesson

    run, model, rows = opened(config, "student")
    token = [prompt + completion for prompt, completion in rows]
    section = config.student
    lm = run.load(model, section.param_dtype)
    training, compute = training_of(section.training), compute_of(run.mesh, section)
    if not training.lora_rank:
        raise ValueError("student.training.lora_rank=0: the peers train adapters; set it to 1 or more")
    ids = tuple(str(i) for i in range(len(rows)))
    lesson = Lesson(ids, Answers(ids, ids, ids), np.ones(len(rows), np.float32))
    objective = plugins.make("objective", "sft")
    plan = objective.plan(lesson, lambda i, _: rows[int(i)], Shape(**section.training.shape), jax.random.key(0))
    batches = one_pass(plan, Shape(**section.training.shape))
    keys = jax.random.split(jax.random.key(1))
    learnt = compute.place_params(trainer.fresh(lm.params, *keys, objective=objective, training=training))
    step_kw = trainer.statics(compute, lm.config, objective, training)
    moments = trainer.moments(learnt, optimizer=training.optimizer, mesh=step_kw["model"].mesh)
    begin = trainer.TrainState(learnt, compute.place_params(moments))

    def ours():
        state = jax.tree.map(jnp.copy, begin)
        losses = []
        for batch in batches:
            placed = compute.place_rows(jax.tree.map(lambda x: x[None], batch), axis=1)
            state, metrics = trainer.train_step(state, lm.params, placed, np.float32(STILL), **step_kw)
            losses.append(metrics["loss"] * batch.weight.sum())
        return sum(map(float, losses)) / sum(float(batch.weight.sum()) for batch in batches)

    contestants = {
        "ours": ours,
        **peers().sft(
            model.folder,
            rows,
            batch_rows=PEER_ROWS.value,
            row_length=section.training.shape.row_length,
            rank=training.lora_rank,
            alpha=training.lora_alpha,
            lr=STILL,
            dtype=section.dtype,
        ),
    }
    seconds, results = turns.take_turns(contestants, REPEATS.value)
    for name, loss in results.items():
        cli.say(f"{name}: mean loss {loss:.4f} over the pass")
        if abs(loss - results["ours"]) > 0.01 * results["ours"]:
            raise ValueError(f"{name} has a loss of {loss:.4f}, ours is {results['ours']:.4f}: they do not do the same work")
    case = f"{model.name}, LoRA {training.lora_rank}, {len(rows)} rows of {statistics.mean(map(len, token)):.0f} tokens"
    # Frozen weights get no gradient: the backward pass is about one more forward pass.
    return summary(
        "sft", f"{case}, {section.dtype}", seconds, sum(map(len, token)), 2 * forward_flops(lm.config), section.dtype
    )


def written(bench: Callable[..., dict[str, Any]], config) -> dict[str, Any]:
    """A bench of `bench_writing`, with this command's flags."""
    return bench(config, prompts=PROMPTS.value, repeats=REPEATS.value, transformers=peers(), with_tunix=TUNIX.value)


def trust(config) -> dict[str, Any]:
    """The bench of `bench_trust`, with this command's flags."""
    sizes = {"rows": ROWS.value, "features": FEATURES.value, "num_heads": HEADS.value, "repeats": REPEATS.value}
    return bench_trust.trust(config, **sizes, torch_heads=peers().trust_heads)


BENCHES: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "hidden": hidden,
    "sft": sft,
    "decode": functools.partial(written, bench_writing.decode),
    "grpo": functools.partial(written, bench_writing.grpo),
    "trust": trust,
}


def one_pass(plan, shape) -> list:
    """The batches of one pass over the lesson; what the last one takes from the next pass is left out."""
    import dataclasses
    import math

    import numpy as np

    num_rows = round(plan.num_batches * shape.batch_rows)
    batches = [plan.batch(index) for index in range(math.ceil(plan.num_batches))]
    kept = num_rows - (len(batches) - 1) * shape.batch_rows
    last = {}
    for name in ("token", "segment", "position", "weight"):
        last[name] = np.array(getattr(batches[-1], name))
        last[name][kept:] = 0
    return [*batches[:-1], dataclasses.replace(batches[-1], **last)]


def opened(config, who: str):
    """The run, its teacher or student, and (prompt tokens, answer tokens) of the rows; the answer is any option."""
    import numpy as np

    from w2s_jax.looking import ask
    from w2s_jax.models.tokenizer import Tokenizer
    from w2s_jax.run import Run, find_model
    from w2s_jax.tasks.asking import Asking

    workdir, store = cli.folders(config)
    run = Run(config, 0, cli.open_store(store, workdir), lambda *metrics: None)
    model = find_model(run, config[who].model)
    section = config[who]
    asking = Asking(Tokenizer.load(model.folder), section.style, section.chat, context=2**30)
    questions = ask(run.task, "target")
    drawn = np.random.default_rng(0).permutation(len(questions))[: ROWS.value]
    rows = []
    for n in drawn:
        prompt, answer = asking.answer(questions[n], questions[n].options[0])
        rows.append((prompt, answer))
    return run, model, rows


def summary(bench: str, case: str, seconds: Mapping[str, Sequence[float]], tokens: int, flops_per_token: float, dtype: str):
    """The JSON object, with the share of the accelerator's own ceiling that is used."""
    import jax

    found = turns.summary(bench, case, seconds, tokens)
    if jax.default_backend() != "cpu":
        median = statistics.median(found["ours"]["tokens_per_s"])
        found["mfu"] = round(median * flops_per_token / (matmul_ceiling(dtype) * jax.device_count()), 3)
    return found


def forward_flops(config) -> float:
    """Multiplications and additions that each token needs of the blocks' weights; attention scores and the output map, which
    differ between contestants, are left out."""
    import math

    from flax import traverse_util

    from w2s_jax.models import decoder

    shapes = traverse_util.flatten_dict(decoder.shapes(config))
    return 2.0 * sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path[-1] == "kernel" and path[0] != "head")


def matmul_ceiling(dtype: str, size: int = 8192) -> float:
    """FLOP/s that one device reaches on a large product."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def peers():
    """The other libraries' side.

    Raises:
        ValueError: they are not installed.
    """
    try:
        from experiments import peers
    except ImportError as error:
        raise ValueError(f"{error}: the peers are missing; pip install -e '.[bench]'") from None
    return peers


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
