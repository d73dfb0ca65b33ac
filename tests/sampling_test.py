"""What is written does not depend on slots, company or order, and follows the model's own distribution."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from tests.choosing_test import full_pass
from w2s_jax import sampling, slots
from w2s_jax.drawing import Drawing, restricted
from w2s_jax.models import lora, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.tasks.asking import Asked

GREEDY = Drawing(temperature=0.0)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def generate(lm, prompts, *, ids=None, **changes):
    settings = dict(
        num_samples=1,
        drawing=GREEDY,
        max_new_tokens=6,
        num_slots=4,
        row_length=64,
        compute=tiny.compute(),
        key=jax.random.key(0),
    )
    asked = [Asked(i, prompt, [], []) for i, prompt in zip(ids or [f"q{n}" for n in range(len(prompts))], prompts, strict=True)]
    return sampling.generate(lm, asked, **settings | changes)


PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [2, 3], [9, 9, 9, 9], [4]]


def test_greedy_tokens_are_the_most_probable_ones_of_a_full_pass(lm):
    prompts = [*PROMPTS, [5, 6, 7] * 6]  # the last one needs more slots than the others
    found = generate(lm, prompts)
    for prompt, completion, logp in zip(prompts, found.completion, found.logp, strict=True):
        said = full_pass(lm, [*prompt, *completion])[1][len(prompt) - 1 : -1]
        np.testing.assert_array_equal(said.argmax(-1), completion)
        np.testing.assert_allclose(said.max(-1), logp, atol=1e-5)


def test_an_answer_ends_with_its_first_stop_token(lm):
    found = generate(lm, PROMPTS, drawing=Drawing(3.0), max_new_tokens=30, num_samples=8)
    stop = lm.tokenizer.stop_ids[0]
    ended = [c.tolist() for c in found.completion if stop in c]
    assert ended and all(c.index(stop) == len(c) - 1 for c in ended)
    assert all(len(c) == 30 for c in found.completion if stop not in c) and len(ended) < len(found.completion)
    np.testing.assert_array_equal(found.logp.offset, found.completion.offset)


def test_any_of_several_stop_tokens_ends_an_answer(lm):
    other = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=(1, 9, 10)))
    found = [c.tolist() for c in generate(other, PROMPTS, drawing=Drawing(3.0), max_new_tokens=30, num_samples=8).completion]
    assert {c[-1] for c in found if len(c) < 30} == {1, 9, 10}
    assert not any({1, 9, 10} & set(c[:-1]) for c in found)


def test_the_samples_of_a_question_stand_together(lm):
    found, one = generate(lm, PROMPTS, num_samples=3), generate(lm, PROMPTS)
    for r in range(3 * len(PROMPTS)):
        assert found.prompt[r].tolist() == PROMPTS[r // 3]
        np.testing.assert_array_equal(found.completion[r], one.completion[r // 3])


def test_a_sample_depends_on_key_question_and_number_alone(lm):
    one = generate(lm, PROMPTS, drawing=Drawing(), num_samples=3)
    other = generate(lm, PROMPTS, drawing=Drawing(), num_samples=3, num_slots=7)
    for a, b in zip(one.completion, other.completion, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(one.completion[0].tolist() != one.completion[s].tolist() for s in (1, 2))
    another = generate(lm, PROMPTS, drawing=Drawing(), num_samples=3, key=jax.random.key(1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one.completion, another.completion, strict=True))
    alone = generate(lm, PROMPTS[3:4], ids=["q3"], drawing=Drawing(), num_samples=3)
    renamed = generate(lm, PROMPTS[3:4], ids=["other"], drawing=Drawing(), num_samples=3)
    assert [c.tolist() for c in alone.completion] == [one.completion[r].tolist() for r in (9, 10, 11)]
    assert any(a.tolist() != b.tolist() for a, b in zip(alone.completion, renamed.completion, strict=True))


def test_samples_follow_the_models_tempered_distribution_token_by_token(lm):
    from scipy import stats

    def tempered(tokens):
        p = np.exp(full_pass(lm, tokens)[1][-1].astype(np.float64) / 2)
        return p / p.sum()

    def fits(drawn, p):
        counts, rare = np.bincount(drawn, minlength=len(p)), p * len(drawn) < 5
        observed, expected = np.append(counts[~rare], counts[rare].sum()), np.append(p[~rare], p[rare].sum()) * len(drawn)
        keep = expected > 0
        return stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-3

    found = generate(lm, [[3, 4]], drawing=Drawing(2.0), num_samples=2000, max_new_tokens=2, num_slots=256)
    first = np.array([c[0] for c in found.completion])
    assert fits(first, tempered([3, 4]))
    np.testing.assert_allclose([logp[0] for logp in found.logp], np.log(tempered([3, 4]))[first], atol=1e-4)
    often = int(np.bincount(first).argmax())
    assert fits([c[1] for c in found.completion if c[0] == often], tempered([3, 4, often]))


def test_both_log_probabilities_are_those_of_a_full_pass(lm):
    drawing = Drawing(1.7, top_k=9, top_p=0.9)
    found = generate(lm, PROMPTS, num_samples=3, drawing=drawing, max_new_tokens=30)
    for prompt, completion, logp, own in zip(found.prompt, found.completion, found.logp, found.model_logp, strict=True):
        said = full_pass(lm, [*prompt, *completion])[1][len(prompt) - 1 : -1]
        place = np.arange(len(completion)), completion
        np.testing.assert_allclose(own, said[place], atol=1e-5)
        np.testing.assert_allclose(logp, np.asarray(restricted(said, drawing))[place], atol=1e-5)
    assert max(map(len, found.completion)) == 30


@pytest.mark.slow
def test_slots_order_company_and_cache_leave_no_trace(lm, monkeypatch):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 18, n).tolist() for n in (1, 30, 3, 17, 9, 2, 25, 5, 12, 1)]
    settings = dict(drawing=Drawing(2.0), num_samples=3, max_new_tokens=20)
    want = generate(lm, prompts, num_slots=40, **settings)
    asked = [Asked(f"q{n}", prompt, [], []) for n, prompt in enumerate(prompts)]

    def compared(found, order):
        for place, n in enumerate(order):
            for s in range(3):
                r, other = 3 * place + s, 3 * n + s
                np.testing.assert_array_equal(found.completion[r], want.completion[other])
                np.testing.assert_allclose(found.logp[r], want.logp[other], atol=1e-5)

    for num_slots in (1, 7):
        compared(generate(lm, prompts, num_slots=num_slots, **settings), range(10))
    order = rng.permutation(10)
    shuffled = [asked[n] for n in order]
    how = dict(settings, num_slots=5, row_length=64, compute=tiny.compute(), key=jax.random.key(0))
    compared(sampling.generate(lm, shuffled, **how), order)
    monkeypatch.setattr(sampling, "STEPS", 3)
    monkeypatch.setattr(sampling, "READ_TOGETHER", 2)
    monkeypatch.setattr(sampling, "room", lambda length: 8 * -(-length // 8) + 8)
    compared(sampling.generate(lm, shuffled, **how), order)
    assert len({len(c) for c in want.completion}) > 5


def test_each_prompt_is_read_once_and_slots_are_kept_busy(lm, monkeypatch):
    read, write, seen = slots.read, slots.write, {"read": 0, "written": 0, "offered": 0}

    def reading(params, lora, token, length, **static):
        seen["read"] += int((np.asarray(length) > 1).sum())
        return read(params, lora, token, length, **static)

    def writing(params, lora, state, *rest, **static):
        before = np.asarray(state.count)
        out = write(params, lora, state, *rest, **static)
        new = np.asarray(out[0].count) - before
        seen["written"] += int(new.sum())
        seen["offered"] += int(new.max() * len(new))
        return out

    monkeypatch.setattr(slots, "read", reading)
    monkeypatch.setattr(slots, "write", writing)
    rng = np.random.default_rng(0)
    limits = np.exp(rng.uniform(np.log(4), np.log(40), 40)).astype(int).tolist()
    found = generate(lm, [[3, 4]] * 40, num_samples=2, num_slots=8, max_new_tokens=limits, stop_ids=())
    assert seen["read"] == 40
    assert found.completion.length.tolist() == np.repeat(limits, 2).tolist()
    # A batch that waits for its longest row would be busy in 45 % of its places.
    assert seen["written"] == sum(limits) * 2 and seen["written"] > 0.85 * seen["offered"]


def test_after_a_first_pass_other_questions_compile_nothing(lm):
    def settings(seed):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(2, 18, rng.integers(1, 17)).tolist() for _ in range(20 + seed)]
        generate(lm, prompts, drawing=Drawing(1.1), max_new_tokens=14, num_slots=4, key=jax.random.key(seed))

    settings(0)
    programs = (slots.read, slots.admit, slots.resize, slots.write)
    before = [program._cache_size() for program in programs]
    for seed in (1, 2, 3):
        settings(seed)
    assert [program._cache_size() for program in programs] == before


def test_a_stop_text_ends_an_answer_at_the_token_that_completes_it(lm):
    free = generate(lm, PROMPTS, drawing=Drawing(3.0), max_new_tokens=30, num_samples=8)
    found = generate(lm, PROMPTS, drawing=Drawing(3.0), max_new_tokens=30, num_samples=8, stop_texts=("a b", "c"))
    texts = [[lm.tokenizer.decode(c[: t + 1]) for t in range(len(c))] for c in free.completion]
    ended = 0
    for r, text in enumerate(texts):
        end = next((t + 1 for t, said in enumerate(text) if "a b" in said or "c" in said), len(text))
        assert found.completion[r].tolist() == free.completion[r][:end].tolist()
        np.testing.assert_allclose(found.logp[r], free.logp[r][:end], atol=1e-5)
        ended += end < len(text)
    assert ended > 5
    with pytest.raises(ValueError, match="stop_texts holds an empty text"):
        generate(lm, PROMPTS, stop_texts=("",))


@pytest.mark.parametrize("drawing", [GREEDY, Drawing(2.0)], ids=["greedy", "drawn"])
def test_adapters_beside_the_parameters_write_what_a_merged_model_writes(lm, drawing):
    fresh = lora.init(lm.params, jax.random.key(5), 3)
    adapters = lora.Adapters(jax.tree.map(lambda x: x + 0.2, fresh), 3, 6.0)
    merged = dataclasses.replace(lm, params=lora.merge(lm.params, adapters))
    one = generate(lm, PROMPTS, adapters=adapters, drawing=drawing, num_samples=2)
    other = generate(merged, PROMPTS, drawing=drawing, num_samples=2)
    for a, b in zip(one.completion, other.completion, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.completion.flat.tolist() != generate(lm, PROMPTS, drawing=drawing, num_samples=2).completion.flat.tolist()


def test_scores_that_are_no_numbers_name_the_question(lm):
    weight = lm.params["embed"]["weight"].at[9].set(np.nan)
    broken = dataclasses.replace(lm, params=lm.params | {"embed": {"weight": weight}})
    with pytest.raises(ValueError, match="the model gives question 'q[0-9]' scores that are no numbers"):
        generate(broken, PROMPTS)


def on_a_mesh(data: int, fsdp: int, tensor: int) -> list:
    lm, compute = tiny.lm(), Compute(sharding.make_mesh(data, fsdp, tensor))
    placed = dataclasses.replace(lm, params=compute.place_params(lm.params))
    found = generate(placed, PROMPTS, num_samples=4, drawing=Drawing(2.0), max_new_tokens=12, num_slots=8, compute=compute)
    return [found.completion.flat.tolist(), found.completion.length.tolist(), found.logp.flat.tolist()]


@pytest.mark.slow
def test_eight_devices_write_what_one_writes():
    sizes = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 1)]
    code = f"import json; from tests import sampling_test as t; print(json.dumps([t.on_a_mesh(*s) for s in {sizes}]))"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    one, *others = json.loads(done.stdout.splitlines()[-1])
    for other in others:
        assert other[:2] == one[:2]
        np.testing.assert_allclose(other[2], one[2], atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_slots": 0}, "num_slots=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"row_length": 11}, "question 'q2' has 7 tokens, allowed are 4"),
        ({"max_new_tokens": 63}, "max_new_tokens=63 leaves no room for a prompt in rows of 64 tokens"),
    ],
)
def test_bad_requests_are_refused(lm, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(lm, PROMPTS, **changes)


def test_a_context_shorter_than_the_row_and_a_model_without_a_stop_token_are_refused(lm):
    short = dataclasses.replace(lm, config=dataclasses.replace(lm.config, max_position=12))
    with pytest.raises(ValueError, match="question 'q2' has 7 tokens, allowed are 5"):
        generate(short, PROMPTS)
    endless = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=()))
    with pytest.raises(ValueError, match="the model names no stop token"):
        generate(endless, PROMPTS)
