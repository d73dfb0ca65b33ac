"""How fast models write, and learn by what they write: `experiments.bench decode` and `grpo`.

`decode`: 64 requests, each of a length that is settled beforehand (log-uniform, 16 to 256 tokens), 16 written at a time, drawn
at temperature 1 from the same float32 weights. Peers write batches of 16 rows; a batch runs until its longest row is done, and
only the wanted tokens count. Batches in order of arrival are what a user can have, and what the ratio is against. transformers
is also told sorted by the length of the answers to come: nobody knows that beforehand, so it bounds what any batching of whole
rows could reach. transformers' continuous batching (`generate_batch`) writes the same tokens but is made for GPUs: with its
defaults it wrote about 4 tokens/s on two busy CPU cores, so it is left out.

`grpo`: a step of 2 questions with 8 answers of 64 tokens each, all parameters trained, no reference: write, reward, learn.
Tokens are those of prompts and answers. The peer is tunix's GRPO learner; a turn of ours is a whole training of one step, which
copies the weights before.

Before any turn the greedy answers of all contestants are compared, so that it is known that they compute the same model.
"""

import dataclasses
import gzip
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import isolated, turns
from experiments import main as cli

REQUESTS, SLOTS, LENGTHS = 64, 16, (16, 256)
COMPARED, COMPARED_TOKENS = 8, 24
QUESTIONS, GROUP, ANSWER = 2, 8, 64
STEPS = 1
"""GRPO steps of a turn."""
RATE = 1e-6
NEVER = -1
"""A stop token that no model writes."""


def decode(config, *, prompts: str, repeats: int, transformers, with_tunix: bool) -> dict[str, Any]:
    """See the module.

    Args:
        config: of the experiment; its student writes.
        prompts: a file, see `read_prompts`.
        repeats: turns that count.
        transformers: the peers of torch (`experiments.peers`).
        with_tunix: whether tunix takes part.
    """
    import jax

    from w2s_jax.drawing import Drawing

    run, model, lm, compute = opened(config)
    asked = ask(run, lm, config, prompts, REQUESTS)
    tokens, limits = [one.prompt for one in asked], forced_lengths(len(asked))
    longest = max(map(len, tokens)) + max(limits)

    def write(some, limits, temperature):
        return generate(lm, some, limits, compute, Drawing(temperature), jax.random.key(0))

    torch = transformers.writer(model.folder)
    few = [one.prompt for one in asked[:COMPARED]]
    greedy = {"ours": write(asked[:COMPARED], [COMPARED_TOKENS] * len(few), 0.0)}
    greedy["transformers"] = torch(few, COMPARED_TOKENS, 0.0)
    contestants = {"ours": lambda: [len(row) for row in write(asked, limits, 1.0)]}
    ways = batches(limits)
    for name, way in ways.items():
        contestants[f"transformers, {name}"] = lambda way=way: lengths(
            way, limits, [torch([tokens[r] for r in rows], max(limits[r] for r in rows), 1.0) for rows in way]
        )
    with isolated.Tunix() if with_tunix else _Nobody() as tunix:
        versions = {}
        if with_tunix:
            tunix.ask(do="load", folder=str(model.folder), prompts=tokens, cache=longest)
            versions = {"google-tunix": isolated.TUNIX}

            def tunix_write(some, steps, temperature):
                return tunix.ask(do="write", batches=some, length=steps, temperature=temperature, seed=0)["tokens"]

            (greedy["tunix"],) = tunix_write([few], [COMPARED_TOKENS], 0.0)
            way = ways["arrival"]
            prompts_of, steps = [[tokens[r] for r in rows] for rows in way], [max(limits[r] for r in rows) for rows in way]
            contestants["tunix, arrival"] = lambda: lengths(way, limits, tunix_write(prompts_of, steps, 1.0))
        compare(greedy)
        seconds, results = turns.take_turns(contestants, repeats)
    for name, found in results.items():
        if list(found) != list(limits):
            raise ValueError(f"{name} wrote {sum(found)} tokens instead of {sum(limits)}: speeds cannot be compared")
    case = f"{model.name}, {len(asked)} prompts of {mean_length(tokens):.0f} tokens, answers of {np.mean(limits):.0f}"
    unfair = [name for name in contestants if name.endswith(SORTED)]
    return turns.summary(
        "decode", f"{case}, {SLOTS} at a time, float32", seconds, int(sum(limits)), unfair=unfair, versions=versions
    )


def grpo(config, *, prompts: str, repeats: int, transformers, with_tunix: bool) -> dict[str, Any]:
    """See the module; the arguments are those of `decode`."""
    import jax
    from etils import epath

    from w2s_jax.drawing import Drawing
    from w2s_jax.packing import Shape
    from w2s_jax.settings import training_of
    from w2s_jax.student import grpo, online, rewards
    from w2s_jax.tasks.asking import Asking
    from w2s_jax.types import Answers, Lesson

    if not with_tunix:
        raise ValueError("grpo has no other peer than tunix; leave --notunix out")
    run, model, lm, compute = opened(config)
    section = config.student
    questions = questions_of(run, prompts, QUESTIONS)
    asking = Asking(lm.tokenizer, section.style, section.chat, context=2**30)
    asked = [asking.ask(question) for question in questions]
    tokens = [one.prompt for one in asked]
    longest = max(map(len, tokens)) + ANSWER
    if section.training.lora_rank:
        raise ValueError(
            f"student.training.lora_rank={section.training.lora_rank}: the peer trains all parameters; set it to 0"
        )
    objective = grpo.make(
        group_size=GROUP, questions=QUESTIONS, max_new_tokens=ANSWER, rewards=(f"{__name__}.arbitrary",), reward_weights=(1.0,)
    )
    ids = tuple(question.id for question in questions)
    lesson = Lesson(questions, Answers(ids, ids, ids), np.ones(len(ids), np.float32))
    training = dataclasses.replace(
        training_of(section.training),
        epochs=float(STEPS),
        accumulation=1,
        lr=RATE,
        schedule="constant",
        warmup_frac=0.0,
        checkpoint_every=10**9,
    )
    dialogue = online.Dialogue(
        asking=asking,
        extract=lambda text: "",
        agree=rewards.equal,
        stop_texts=(),
        num_slots=SLOTS,
        row_length=longest + 1,
        compute=compute,
    )

    def ours():
        steps: list[Mapping[str, float]] = []
        with tempfile.TemporaryDirectory() as folder:
            taught = online.teach(
                lm,
                lesson,
                objective,
                dialogue,
                training=training,
                shape=Shape(**section.training.shape),
                compute=compute,
                key=jax.random.key(0),
                partial=epath.Path(folder),
                log=lambda step, metrics: steps.append(metrics),
            )
        jax.block_until_ready(taught.lm.params)
        return [round(step["completion_tokens"]) for step in steps]

    with isolated.Tunix() as tunix:
        tunix.ask(do="load", folder=str(model.folder), prompts=tokens, cache=longest)
        greedy = {"ours": generate(lm, asked, [COMPARED_TOKENS] * len(asked), compute, Drawing(0.0), jax.random.key(0))}
        (greedy["tunix"],) = tunix.ask(do="write", batches=[tokens], length=[COMPARED_TOKENS], temperature=0.0, seed=0)[
            "tokens"
        ]
        compare(greedy)
        num_steps = STEPS * (repeats + 1) + 1
        about = {"new_tokens": ANSWER, "longest": max(map(len, tokens)), "lr": RATE}
        tunix.ask(do="learn", group=GROUP, steps=num_steps, **about)

        def theirs():
            steps = [tunix.ask(prompts=tokens)["written"] for _ in range(STEPS)]
            return [round(np.mean(step)) for step in steps]

        seconds, results = turns.take_turns({"ours": ours, "tunix": theirs}, repeats)
    for name, found in results.items():
        if found != [ANSWER] * STEPS:
            raise ValueError(f"{name} wrote {found} tokens an answer instead of {ANSWER}: speeds cannot be compared")
    case = f"{model.name}, {QUESTIONS} questions of {mean_length(tokens):.0f} tokens x {GROUP} answers of {ANSWER}"
    handled = STEPS * GROUP * sum(len(prompt) + ANSWER for prompt in tokens)
    return turns.summary(
        "grpo", f"{case}, all parameters, float32", seconds, handled, versions={"google-tunix": isolated.TUNIX}
    )


def arbitrary(*, texts: Sequence[str], **about) -> list[float]:
    """A reward that differs between answers, as the peer's does: without variance there is nothing to learn."""
    return [float(sum(text.encode()) % 7) for text in texts]


# ---- What both need --------------------------------------------------------------------------------------------------


class _Nobody:
    """Stands where tunix does not take part."""

    def __enter__(self):
        return None

    def __exit__(self, *exc):
        pass


def opened(config):
    """The run, its student's name and folder, the student itself, which never stops writing, and how it computes."""
    from w2s_jax.run import Run, find_model
    from w2s_jax.settings import compute_of

    workdir, store = cli.folders(config)
    run = Run(config, 0, cli.open_store(store, workdir), lambda *metrics: None)
    model = find_model(run, config.student.model)
    lm = run.load(model, config.student.param_dtype)
    lm = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=(NEVER,)))
    return run, model, lm, compute_of(run.mesh, config.student)


def questions_of(run, prompts: str, number: int) -> tuple:
    """Drawn at random: the target's, or those of a file of JSON lines that have a `problem`."""
    from w2s_jax import looking
    from w2s_jax.types import Question

    if prompts:
        reader = gzip.open if prompts.endswith(".gz") else open
        with reader(prompts, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        questions = [Question(f"{n}", "prompts", row["problem"]) for n, row in enumerate(rows)]
    else:
        questions = list(looking.ask(run.task, "target"))
    drawn = np.random.default_rng(0).permutation(len(questions))[:number]
    return tuple(questions[n] for n in drawn)


def ask(run, lm, config, prompts: str, number: int) -> list:
    """The questions as the student reads them."""
    from w2s_jax.tasks.asking import Asking

    asking = Asking(lm.tokenizer, config.student.style, config.student.chat, context=2**30)
    return [asking.ask(question) for question in questions_of(run, prompts, number)]


def generate(lm, asked, limits: Sequence[int], compute, drawing, key) -> list[list[int]]:
    """Our engine's tokens."""
    from w2s_jax import sampling

    row_length = max(len(one.prompt) for one in asked) + max(limits) + 1
    written = sampling.generate(
        lm,
        asked,
        num_samples=1,
        drawing=drawing,
        max_new_tokens=list(limits),
        num_slots=SLOTS,
        row_length=row_length,
        compute=compute,
        key=key,
        label="write",
    )
    return [tokens.tolist() for tokens in written.completion]


def forced_lengths(number: int) -> list[int]:
    """Log-uniform; always the same."""
    low, high = np.log(LENGTHS)
    return np.exp(np.random.default_rng(1).uniform(low, high, number)).round().astype(int).tolist()


SORTED = "sorted by answers to come"


def batches(limits: Sequence[int]) -> dict[str, list[list[int]]]:
    """Row numbers of each batch."""
    orders = {"arrival": list(range(len(limits))), SORTED: np.argsort(limits, kind="stable").tolist()}
    return {name: [order[i : i + SLOTS] for i in range(0, len(order), SLOTS)] for name, order in orders.items()}


def mean_length(tokens: Sequence[Sequence[int]]) -> float:
    return float(np.mean([len(row) for row in tokens]))


def lengths(way: Sequence[Sequence[int]], limits: Sequence[int], written) -> list[int]:
    """How many of the tokens wanted of each row were written."""
    found = [0] * len(limits)
    for rows, tokens in zip(way, written, strict=True):
        for r, row in zip(rows, tokens, strict=True):
            found[r] = min(len(row), limits[r])
    return found


def compare(greedy: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Says how many greedy answers are ours.

    Raises:
        ValueError: fewer than three of four: where two tokens are as good as equally probable, answers may part.
    """
    for name, theirs in greedy.items():
        same = sum(list(a) == list(b) for a, b in zip(greedy["ours"], theirs, strict=True))
        cli.say(f"{name}: {same} of {len(theirs)} greedy answers are ours")
        if same < 0.75 * len(theirs):
            raise ValueError(f"{name} writes other greedy answers than ours: it is not the same model")
