"""What methods cost is counted from what a link left: lengths, configs and heads, against sums done by hand."""

import csv
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import cost_page, costs, gathering, pipeline
from w2s_jax.costs import Cost, Costs
from w2s_jax.models import decoder, flops, hf_io
from w2s_jax.models.flops import Load
from w2s_jax.models.tokenizer import word_level
from w2s_jax.planning import hlo
from w2s_jax.run import Run, find_model
from w2s_jax.store import Store
from w2s_jax.trust import neural
from w2s_jax.trust.heads import HEADS
from w2s_jax.types import LM, Ragged, Rollout

METHODS = (
    "naive",
    "ntf",
    "gold",
    "knn",
    "logistic",
    "same_purity",
    "p_true",
    "paraphrase",
    "reward_model",
    "selective",
)
PROMPT = 5  # tokens of `name x + y =`


def config(models, arg=None, methods=METHODS):
    c = toy.get_config(arg)
    c.methods = methods
    c.teacher.model, c.student.model = (str(models / name) for name in ("weak", "strong"))
    c.analysis.easy_first = False
    c.trust.knn.k = 5
    c.trust.paraphrase.wordings = ("{question}", "{question}")  # in two other orders of the options
    c.trust.reward_model.update(kind="likelihood", model=str(models / "strong"))
    c.relabel.selective.update(neighbours=3, trust_threshold=0.0, smoothed_threshold=0.0)
    return c


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    # The words that a teacher is asked about its own answers with.
    asked = "Question: Possible answers: Proposed answer: Is the proposed answer: A. B. True False Answer: 0; 1; 2; 3; A B"
    words = word_level(dict.fromkeys((*toy.make(seed=0).vocabulary(), *asked.split())))
    for seed, (name, width) in enumerate((("weak", 16), ("strong", 24))):
        sizes = dataclasses.replace(tiny.CONFIG, vocab_size=words.vocab_size, width=width)
        hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), folder / name)
    return folder


def a_run(c, root, lines=None):
    return Run(c, 0, Store(root, log=(lines if lines is not None else []).append), lambda *metrics: None)


def a_link(c, root):
    one = a_run(c, root)
    teacher, student = (find_model(one, word) for word in (c.teacher.model, c.student.model))
    return one, teacher, student, pipeline.link(one, teacher, student)


@pytest.fixture(scope="module")
def linked(models, tmp_path_factory):
    """A run, its models, its link, and the cost of each method."""
    made = a_link(config(models), tmp_path_factory.mktemp("linked"))
    return *made, {one.method: one for one in costs.count(*made).rows}


def pass_over(rows, config, length=PROMPT, logits=0):
    return flops.forward(config, flops.reading(np.full(rows, length), logits=rows * logits))


def test_each_part_is_what_it_takes_by_hand(linked, models):
    found = linked[-1]
    weak = hf_io.read_config(str(models / "weak"))
    target, source = (pass_over(rows, weak, logits=1) for rows in (60, 60))
    states = pass_over(120, weak, PROMPT + 1)  # prompt and answer, read again
    ntf = found["ntf"]
    assert (ntf.answers, ntf.states, ntf.evidence, ntf.own) == (target + source, states, 0, 0)
    assert (ntf.source_rows, ntf.target_rows, ntf.epochs, ntf.complete) == (60, 60, 3, True)
    n = 16 * 16 + 16 + 16 + 2 * 16 * 32 + 32 * 16 + 16 + 16 + 1  # input, a block with its norm, norm and output
    assert ntf.weights == n and ntf.scoring == 2 * n * 60
    assert ntf.fitting == 3 * 48 * (6 * n - 2 * (16 * 16 + 16)) + 4 * 12 * 2 * n  # 3 steps of 16 rows; 12 rows are held back
    assert ntf.total == ntf.answers + ntf.states + ntf.fitting + ntf.scoring + ntf.teaching


def test_a_method_pays_for_what_it_asks_for_alone(linked, models):
    found = linked[-1]
    target = pass_over(60, hf_io.read_config(str(models / "weak")), logits=1)
    naive = found["naive"]
    assert (naive.answers, naive.states, naive.evidence, naive.trust, naive.source_rows) == (target, 0, 0, 0, 0)
    assert found["gold"].total == found["gold"].teaching and found["gold"].teacher == 0
    assert found["p_true"].answers == target and found["p_true"].evidence > target and found["p_true"].states == 0
    assert (found["paraphrase"].answers, found["paraphrase"].evidence) == (target, 2 * target)
    drawn = found["same_purity"]  # matched to the selection of ntf
    assert dataclasses.replace(drawn, method="ntf", teaching=found["ntf"].teaching) == found["ntf"]


def test_probes_are_counted_as_far_as_they_can_be(linked):
    found = linked[-1]
    knn, logistic = found["knn"], found["logistic"]
    assert (knn.fitting, knn.scoring, knn.complete) == (0, 2 * 60 * 60 * (16 + 1), True)
    assert (logistic.fitting, logistic.scoring, logistic.trust) == (None, 2 * 60 * 16, None)
    assert logistic.reasons == ("how often L-BFGS evaluated its loss is not stored",) and not logistic.complete
    assert logistic.trust_frac is None and costs.beside(logistic, found["naive"]) is None
    assert knn.states == logistic.states == found["ntf"].states and knn.weights is None and knn.formula is None


def test_other_models_and_the_student_are_counted_by_their_own_shape(linked, models):
    found = linked[-1]
    strong = hf_io.read_config(str(models / "strong"))
    judged, selective = found["reward_model"], found["selective"]
    assert judged.evidence == pass_over(120, strong, PROMPT + 1, logits=1)  # it reads the source's answers too
    assert (judged.answers, judged.states, judged.fitting) == (found["ntf"].answers, 0, 0)
    own = pass_over(120, strong, logits=1) + pass_over(120, strong) + pass_over(600, strong, PROMPT + 1)  # five options
    assert selective.own == own and not selective.complete and selective.trust == found["ntf"].trust


def test_a_head_of_another_run_and_one_that_is_certified_read_other_rows(linked):
    run, *_, link, found = linked
    one, fitted, n = link.choices["ntf"], link.fitted["ntf"], found["ntf"].weights
    reused = dataclasses.replace(one, row=dataclasses.replace(one.row, reused=str(fitted.path / "trust")))
    told = Cost("ntf", 0, 0, **costs.trusting(run, reused, fitted))
    assert (told.fitting, told.scoring, told.source_rows, told.formula) == (None, 2 * n * 60, 0, None) and not told.complete
    assert [each.part for each in costs.passes(run, *linked[1:3], reused)] == ["answers", "states"]
    certified = dataclasses.replace(one, row=dataclasses.replace(one.row, holds_back=True))
    told = Cost("ntf", 0, 0, **costs.trusting(run, certified, fitted))
    assert told.scoring == 2 * n * (60 + 15) and told.source_rows == 60  # a quarter of the source is held back
    assert told.fitting == 3 * 32 * (6 * n - 2 * (16 * 16 + 16)) + 4 * 9 * 2 * n  # of 45 rows


def test_teaching_is_the_steps_that_are_taken(linked, models):
    run, *_, found = linked
    strong = hf_io.read_config(str(models / "strong"))
    # 20 labels in 4 rows of 5: one batch a pass, two passes; only the answer is predicted.
    load = flops.reading(np.full(40, PROMPT + 1), logits=40)
    assert found["naive"].teaching == flops.training(strong, load, rank=0)
    assert found["ntf"].teaching == found["gold"].teaching == found["naive"].teaching


def test_the_papers_formula_stands_beside_the_count(linked):
    ntf = linked[-1]["ntf"]
    assert ntf.paper_trust == 2 * ntf.weights * (3 * 60 + 60)
    assert ntf.formula == pytest.approx(ntf.per_row * 120 + ntf.paper_trust) and ntf.per_row == ntf.teacher / 120
    assert ntf.formula_frac == ntf.paper_trust / ntf.formula and ntf.counted_frac == ntf.trust / (ntf.teacher + ntf.trust)
    assert ntf.formula_frac < ntf.counted_frac < 1


def test_a_served_run_is_counted_without_any_model(linked, monkeypatch):
    run, teacher, student, link, found = linked
    lines = []
    again = a_run(run.config, run.store.root, lines)
    monkeypatch.setattr(hf_io, "load", lambda *args, **kw: pytest.fail("a model was loaded"))
    assert {one.method: one for one in costs.count(again, teacher, student, link).rows} == found
    assert [line for line in lines if line.startswith("count costs")][0].endswith("cached")
    fresh = costs.count(again, teacher, student, link, generation=2).rows
    assert tuple(dataclasses.replace(one, generation=0) for one in fresh) == tuple(found.values())


def test_what_cannot_be_counted_is_said_and_stops_nothing(linked, monkeypatch):
    run, teacher, student, link, _ = linked

    def refuse(*args):
        raise ValueError("no such tokenizer")

    monkeypatch.setattr(costs, "tokenizer_of", refuse)
    told = costs.count(run, teacher, student, link, generation=3)
    assert told == Costs(notes=("what the methods cost was not counted: no such tokenizer",))
    assert set(costs.EVIDENCE) == set(gathering.PROVIDERS)
    monkeypatch.setattr(costs, "EVIDENCE", {})
    asked = costs.passes(run, teacher, student, link.choices["p_true"])[-1]
    assert asked.load is None and asked.reason == "what the evidence 'p_true' asks models for is not known here"
    assert costs.count(run, teacher, student, dataclasses.replace(link, choices={})) == Costs()


@pytest.mark.parametrize("word", HEADS)
def test_a_heads_steps_take_what_xla_counts(word):
    head, rows, points, width = HEADS[word](32, 1, 2), 64, 2, 48
    x = jnp.ones((rows, points, width))
    params = head.init(jax.random.key(0), x[:1])["params"]
    fitted = dataclasses.replace(
        neural.make(head=word, width=32, blocks=1, batch_rows=rows, epochs=1, held_back_frac=0.2), fitted={"params": params}
    )

    def loss(params, x):
        return head.apply({"params": params}, x, 0.1, 0.1, jax.random.key(1)).sum()

    def counted(program):
        return hlo.cost(jax.jit(program).lower(params, x).compile().as_text()).flops

    step, ahead = counted(jax.value_and_grad(loss)), counted(lambda params, x: head.apply({"params": params}, x))
    asked, key = tuple(map(str, range(80))), jax.random.key(0)  # 64 to learn from, 16 to look at after an epoch and in the end
    told = fitted.operations(asked, key)
    watching = 16 * told.scoring
    assert told.fitting - 2 * watching == pytest.approx(step, rel=0.06)  # norms and biases are weights too
    assert told.scoring * rows == pytest.approx(ahead, rel=0.06) and told.scoring == 2 * told.weights
    longer = dataclasses.replace(fitted, epochs=3, batch_rows=24).operations(asked, key)  # two batches of 24 an epoch
    assert longer.fitting - 4 * watching == pytest.approx(3 * 48 / 64 * (told.fitting - 2 * watching))


@pytest.mark.slow
def test_free_answers_are_counted_as_they_were_written(models, tmp_path):
    methods = ("naive", "ntf", "self_consistency", "committee", "self_known", "committee_vote")
    c = config(models, "interface=free", methods)
    c.trust.self_consistency.num_samples = 3
    c.trust.committee.models = c.relabel.committee_vote.models = (str(models / "strong"),)
    c.relabel.self_known.num_samples = 2
    c.select.n = 5
    one, teacher, student, link = a_link(c, tmp_path)
    found = {cost.method: cost for cost in costs.count(one, teacher, student, link).rows}
    weak, strong = (hf_io.read_config(str(models / name)) for name in ("weak", "strong"))
    rollout = link.choices["naive"].seen.unlabelled.answered.value["rollout"]
    by_hand = flops.reading(rollout.prompt.length)
    for prompt, completion in zip(rollout.prompt, rollout.completion, strict=True):
        seen = sum(len(prompt) + t for t in range(1, len(completion)))
        by_hand += Load(len(completion) - 1, seen, len(completion))
    assert found["naive"].answers == flops.forward(weak, by_hand)
    assert found["ntf"].answers > 1.5 * found["naive"].answers
    again, voices = found["self_consistency"], found["committee"]
    read_once = flops.forward(weak, flops.reading(rollout.prompt.length))
    assert 2 * (again.answers - read_once) < again.evidence - read_once < 4 * (again.answers - read_once) + read_once
    assert voices.evidence >= flops.forward(strong, flops.reading(rollout.prompt.length))
    assert found["committee_vote"].evidence > voices.evidence  # both roles
    known = found["self_known"]
    assert known.own > flops.forward(strong, flops.reading(rollout.prompt.length)) and not known.complete
    assert [found[m].own for m in methods if m != "self_known"] == [0] * 5


def test_prompts_are_read_once_for_all_samples():
    rows = Ragged.of([[1, 2], [1, 2], [3], [3]], np.int32)
    said = Ragged.of([[1], [1, 2], [1, 2, 3], [1]], np.int32)
    rollout = Rollout(rows, said, Ragged.of([[0.0] * n for n in said.length], np.float32))
    assert costs.wrote(rollout, 2) == Load(3 + 0 + 1 + 2, 4 + 1 + 3 + 2 + 3, 7)
    assert costs.wrote(rollout, 4) == Load(6 + 3, 4 + 4 + 1 + 1 + 8, 7)


def test_of_a_majority_only_one_sample_is_known(linked):
    run, teacher, _, link, _ = linked
    c = run.config.copy_and_resolve_references()
    c.teacher.update(label="majority", num_samples=4)
    one = dataclasses.replace(run, config=c)
    one.__dict__.update(task=toy.make(seed=0, interface="free"), mesh=run.mesh)
    asked = costs.own_answer(one, teacher, link.choices["naive"].seen.unlabelled)
    cost = costs.added(Cost("naive", 0, 0), asked, {})
    assert cost.answers is None and cost.teacher is None and "only one is stored" in cost.reasons[0]
    more = costs.added(cost, dataclasses.replace(asked, load=lambda *_: Load(10)), {})
    assert more.answers is None and not more.complete


@pytest.mark.slow
def test_a_student_that_writes_is_counted_by_the_lengths_that_were_logged(models, tmp_path):
    c = config(models, "objective=grpo,interface=free", ("naive",))
    c.select.n = 10
    one, teacher, student, link = a_link(c, tmp_path)
    chosen, taught = link.choices["naive"], link.choices["naive"].taught.path.name
    (blind,) = costs.count(one, teacher, student, link).rows
    assert blind.teaching is None and "not logged" in blind.reasons[0] and blind.above_teaching is None
    num_rounds = max(1, round(2.0 * len(chosen.lesson.questions) / min(5, len(chosen.lesson.questions))))
    curve = [(2 * k, 1.5) for k in range(num_rounds)]
    (seen,) = costs.count(one, teacher, student, link, written={taught: {costs.LENGTHS: curve}}).rows
    strong = hf_io.read_config(str(models / "strong"))
    write, learn = costs.round_of(np.full(7, 5.0), 1.5, 5, 4, shared=True)
    one_round = flops.forward(strong, write) + 2 * flops.training(strong, learn, rank=0) + 2 * flops.forward(strong, learn)
    assert seen.complete and seen.teaching == pytest.approx(num_rounds * one_round)
    (part,) = costs.count(one, teacher, student, link, written={taught: {costs.LENGTHS: curve[1:]}}).rows
    assert part.teaching is None
    one.config.student.grpo.zero_variance = "mask"
    spared = costs.taught(one, student, chosen, Cost("naive", 0, 0), curve)
    assert spared.teaching is None and "spared" in spared.reasons[0]


def test_a_round_reads_a_prompt_once_where_answers_share_it():
    write, learn = costs.round_of(np.full(3, 6.0), 2.0, 2, 4, shared=True)
    assert write == Load(2 * 6 + 8 * 1, 2 * 36 + 8 * 7, 8 * 2)
    assert learn == Load(2 * 5 + 8 * 3, 2 * 25 + 8 * 3 * (5 + 3), 8 * 2)
    _, apart = costs.round_of(np.full(3, 6.0), 2.0, 2, 4, shared=False)
    assert apart == Load(8 * 8, 8 * 64, 8 * 2)


# ---- The page --------------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_counted_and_what_is_not():
    whole = {"answers": 4e9, "states": 2e9, "fitting": 1e9, "scoring": 5e8, "teaching": 1e10}
    naive = Cost("naive", 0, 1, answers=2e9, teaching=1e10)
    ntf = Cost("ntf", 0, 1, **whole, source_rows=10, target_rows=20, weights=1000, epochs=5)
    probe = Cost("logistic", 0, 1, **whole | {"fitting": None}, reasons=("it cannot be said",))
    found = Costs((dataclasses.replace(naive, seed=0), naive, ntf, probe), ("something else",))
    (_, (head, body), _), (_, (_, formula), _) = cost_page.parts(cost_page.last(found))
    assert "evidence" not in head and "own" not in head
    assert (
        dict(zip(head, body[1], strict=True))["of naive"] == "1.46×"
        and dict(zip(head, body[1], strict=True))["total"] == "17.5"
    )
    assert (
        dict(zip(head, body[2], strict=True))["trust: fit"] == "–"
        and dict(zip(head, body[2], strict=True))["total"] == "≥ 16.5"
    )
    assert len(body) == 3 and len(formula) == 1 and formula[0][5] == "0.2"
    page = cost_page.section(found, several=True)
    assert "it cannot be said." in page and "Something else." in page and cost_page.ONE_SEED in page and "GFLOP" in page
    assert re.findall(r"\| it cannot|- .*: it cannot be said", "\n".join(cost_page.markdown(found, False)))
    lines = list(csv.DictReader(cost_page.data(found)["costs.csv"].splitlines()))
    assert [line["seed"] for line in lines] == ["0", "1", "1", "1"] and float(lines[2]["total"]) == 1.75e10
    assert float(lines[2]["beside_naive"]) == pytest.approx(1.45833, abs=1e-4) and lines[3]["fitting"] == ""
    assert lines[3]["not_counted"] == "it cannot be said" and lines[3]["beside_naive"] == ""
    assert (
        cost_page.section(Costs(), False) == "" and cost_page.markdown(Costs(), False) == [] and cost_page.data(Costs()) == {}
    )


def test_a_chains_rows_name_their_generation():
    rows = [Cost(m, g, 0, answers=g * 1e9, teaching=1e9) for g in (1, 2) for m in ("naive", "gold")]
    ((_, (head, body), _),) = cost_page.parts(rows)
    assert head[1] == "generation" and [line[1] for line in body] == ["1", "1", "2", "2"]
    assert [line[head.index("of naive")] for line in body] == ["1.00×"] * 4


def test_a_run_writes_them(linked, models, tmp_path):
    from experiments import main

    run, *_, found = linked
    main.run(config(models), workdir=str(tmp_path), store=str(run.store.root))
    assert f"<h2>{cost_page.TITLE}</h2>" in (tmp_path / "report" / "index.html").read_text()
    assert f"## {cost_page.TITLE}" in (tmp_path / "report" / "recovery.md").read_text()
    lines = list(csv.DictReader((tmp_path / "report" / "data" / "costs.csv").open()))
    assert [line["method"] for line in lines] == list(METHODS)
    assert float(lines[1]["total"]) == pytest.approx(found["ntf"].total, rel=1e-5)
