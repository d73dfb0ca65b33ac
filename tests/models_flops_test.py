"""The operations that are counted are those of the programs that run: XLA's own count, for a tiny model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from w2s_jax import choosing, packing
from w2s_jax.models import decoder, flops
from w2s_jax.models.decoder import Decoder
from w2s_jax.packing import Shape
from w2s_jax.planning import hlo
from w2s_jax.student import sft, trainer
from w2s_jax.types import Batch, Ragged

CLOSE = 0.01
"""The greatest difference from XLA's count, as a share of it. Its products of no weight are those of norms and sums."""
CONFIG = dataclasses.replace(
    tiny.CONFIG, vocab_size=96, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=80, tied=False
)
LENGTH = 33


def whole_rows(length: int = LENGTH, num_rows: int = 2) -> tuple[Batch, flops.Load]:
    """Rows that one segment fills, of which all that can be predicted is."""
    token = Ragged.of(np.ones((num_rows, length)), np.int32)
    weight = Ragged.of(np.tile(np.arange(length) > 0, (num_rows, 1)), np.float32)
    rows = [np.array([row]) for row in range(num_rows)]
    batch = packing.lay_out(token, rows, Shape(length, num_rows, 1), weight=weight)
    return batch, flops.learning(batch)


def counted(program, *args, **static) -> float:
    return hlo.cost(program.lower(*args, **static).compile().as_text()).flops


FORMS = {
    "separate": CONFIG,
    "tied": dataclasses.replace(CONFIG, tied=True),
    "one key head": dataclasses.replace(CONFIG, num_kv_heads=1),
    "many words": dataclasses.replace(CONFIG, vocab_size=960, tied=True),  # so that products of logits weigh something
    "no width": dataclasses.replace(CONFIG, head_dim=24),
}


@pytest.mark.parametrize("form", ("tied", "one key head", "no width"))
def test_a_pass_takes_what_xla_counts(form):
    config = FORMS[form]
    batch, load = whole_rows()
    params = decoder.init(config, jax.random.key(0))
    found = counted(choosing.continuation_logp, params, batch, model=Decoder(config))
    assert flops.forward(config, load) == pytest.approx(found, rel=CLOSE)
    assert (load.tokens, load.pairs, load.logits) == (2 * LENGTH, 2 * LENGTH**2, 2 * (LENGTH - 1))


def test_logits_are_paid_for_where_they_are_read():
    batch = packing.lay_out(
        Ragged.of(np.ones((2, LENGTH)), np.int32), [np.array([0]), np.array([1])], Shape(LENGTH, 2, 1),
        probe=np.full(2, LENGTH - 1), extra={"candidate": np.zeros((2, 4), np.int32)},
    )  # fmt: skip
    params = decoder.init(CONFIG, jax.random.key(0))
    found = counted(choosing.candidate_logits, params, batch, model=Decoder(CONFIG))
    load = flops.reading(np.full(2, LENGTH), logits=2)
    assert flops.forward(CONFIG, load) == pytest.approx(found, rel=CLOSE)


@pytest.mark.parametrize(
    "form, rank, targets", [("many words", 0, ()), ("many words", 4, flops.TARGETS), ("no width", 8, ("q", "down"))]
)
def test_a_training_step_takes_what_xla_counts(form, rank, targets):
    config = FORMS[form]
    training = trainer.Training(
        epochs=1.0, accumulation=1, lr=1e-3, schedule="constant", warmup_frac=0.0,
        optimizer=trainer.Optimizer(0.9, 0.99, 1e-8, 0.0, 1.0), lora_rank=rank, lora_alpha=8.0, lora_targets=targets,
        checkpoint_every=1,
    )  # fmt: skip
    objective = sft.make()
    static = trainer.statics(tiny.compute(), config, objective, training)
    columns = 32 if rank else 128  # of a chunk of logits; with one chunk alone XLA would share forward and backward pass
    batch, load = whole_rows(2 * columns + 1)
    params = decoder.init(config, jax.random.key(0))
    learnt = trainer.fresh(params, jax.random.key(1), jax.random.key(2), objective=objective, training=training)
    state = trainer.TrainState(learnt, trainer.moments(learnt, optimizer=training.optimizer, mesh=None))
    batches = jax.tree.map(lambda x: x[None], batch)
    found = counted(trainer.train_step, state, params if rank else {}, batches, jnp.float32(1e-3), **static)
    assert load.logits == 2 * 2 * columns
    once = dataclasses.replace(load, logits=2 * columns)  # the loop over chunks has no fixed number of rounds: counted once
    assert flops.training(config, once, rank=rank, targets=targets) == pytest.approx(found, rel=CLOSE)


def test_a_segment_is_compared_with_itself_and_with_its_stem():
    shape = Shape(row_length=12, batch_rows=2, max_segments=2)
    token, weight = Ragged.of([[1] * 7, [1] * 4], np.int32), Ragged.of([[0, 0, 0, 1, 0, 1, 1], [0, 1, 1, 0]], np.float32)
    branch = Ragged.of([[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1]], np.int32)
    batch = packing.lay_out(token, [np.array([0, 1])], shape, weight=weight, branch=branch)
    pairs = (2**2 + 2 * (2 + 2) + 3 * (2 + 3)) + (1 + 3 * (1 + 3))
    assert flops.learning(batch) == flops.Load(11, pairs, 5)
    flat = packing.lay_out(token, [np.array([0, 1])], shape, weight=weight)
    assert flops.learning(flat) == flops.Load(11, 7**2 + 4**2, 5)
    assert flops.learning(flat.replace(weight=None)).logits == 11


def test_writing_token_by_token_feeds_all_but_the_last():
    prompt, completion = np.array([5, 2]), np.array([4, 1])
    seen = [5 + 1, 5 + 2, 5 + 3]  # by each token that is fed
    assert flops.writing(prompt, completion) == flops.Load(3, sum(seen), 5)


def test_a_cache_of_no_more_than_what_is_seen_takes_what_xla_counts():
    config, B, S = CONFIG, 2, 24
    model, params = Decoder(config), decoder.unstack(config, decoder.init(config, jax.random.key(0)))

    def one(cache, token, position, valid):
        hidden, _ = decoder.extend(model, params, None, cache, token, position, valid)
        return decoder.logits(model, params, hidden)

    column = jnp.ones((B, 1), jnp.int32)
    found = counted(jax.jit(one), decoder.init_cache(config, B, S), column, column * (S - 1), column > 0)
    load = flops.writing(np.full(B, S - 1), np.full(B, 2))  # two tokens, of which one is fed
    assert flops.forward(config, dataclasses.replace(load, logits=B)) == pytest.approx(found, rel=CLOSE)


def test_adapters_beside_the_weights_cost_two_narrow_products():
    load = flops.Load(tokens=10)
    plain, adapted = (flops.forward(CONFIG, load, rank=rank, targets=("q", "down")) for rank in (0, 4))
    assert adapted - plain == 2 * 10 * 2 * 4 * ((32 + 64) + (80 + 32))
