"""Mathematics: one canonical form of an answer, found in any text; roles and gold as every task over rows has them."""

import dataclasses
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from experiments.configs import quantitative
from tests import tiny
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.settings import check
from w2s_jax.tasks import grading, math
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.math import canonical, extract
from w2s_jax.types import LM, Answers

DATA = pathlib.Path(os.environ.get("W2S_DATA") or pathlib.Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "quantitative_reasoning").is_dir(), reason="no shared data: set W2S_DATA")

SAME = [  # spellings of one answer, the canonical one first
    ("1/2", r"\frac{1}{2}", r"\dfrac12", r"$\tfrac{1}{2}$", "½", r"\frac{01}{2}", r"\frac{-1}{-2}", r"\boxed{\frac12}",
     "\frac12"),
    ("-3/4", r"-\frac34", r"\frac{-3}{4}", r"\frac{3}{-4}", "−3/4", r"\(-\frac{3}{4}\)"),
    ("18", "18.", "$18", r"\$18", "18.00", "018", "+18", " 18 dollars", r"18\text{ cm}^2", r"18\,\mathrm{m}/\mathrm{s}^2",
     r"18^\circ", r"18^{\circ}", "18°", r"18\%", "18%", "x = 18", "AB=18", "１８", r"\displaystyle 18", r"18 \text{ degrees}."),
    ("0.5", "0.50", ".5", "00.5"),
    ("0", "-0", "0.0", "000"),
    ("1000000", "1,000,000", r"1{,}000{,}000", r"1,\!000,\!000", "1 000 000"),
    ("(3,-0.50)", r"\left( 3, -0.50 \right)", r"$(3,\ -0.50)$", r"\bigl(3,-0.50\bigr)"),
    (r"2\frac{1}{2}", r"2 \frac{1}{2}", "2 1/2", "2½"),
    ("evelyn", r"\text{Evelyn}", "Evelyn.", r"\textbf{Evelyn}"),
    ("C", r"\text{(C)}", "(C)", "C.", r"\textbf{(C)}"),
    ("2,-1", "2, -1", r"2 \text{ and } -1", r"$2$ or $-1$"),
    (r"\sin^{2}80", r"\sin^2 80", r"\sin ^{2} 80"),
    (r"2\pi r", r"2 \pi r", "2π r"),
    (r"12+12\sqrt{3}", r"12 + 12\sqrt3", r"AB=12+12\sqrt{3}", r"12 + 12 \sqrt{3}\text{ cm}"),
    (r"\frac{11}{2^{20}}", r"\frac{11}{2^{20}"),
]  # fmt: skip
APART = [r"\sin^{2}80", r"\sin^{280}", "2.5", "25", "5!", "5", "12:30 p.m.", "12:30", "1,2", "12", "1,23", "f(n)=n^2", "x+y=3",
         "100,200", "100, 200", r"24_{10}", "24", "June 20", "-18", "i", "1/3", "0.333"]  # fmt: skip


@pytest.mark.parametrize("spellings", SAME, ids=lambda s: s[0])
def test_spellings_of_an_answer_have_one_canonical_form(spellings):
    assert {s: canonical(s) for s in spellings} == dict.fromkeys(spellings, spellings[0])


def test_answers_that_differ_stay_apart():
    assert len({canonical(s) for s in APART} - {""}) == len(APART)


@pytest.mark.parametrize("bad", ["", "  ", "$$", "{}", "...", "()", None, 7, b"5", "5" * 501, r"\boxed{}", "\ud800" * 600])
def test_what_is_no_answer_has_no_canonical_form(bad):
    assert canonical(bad) == ""


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (r"First \boxed{3}, so in the end \boxed{\frac{9}{7}}. Check: 12.", "9/7"),
        (r"\boxed{\boxed{5}} and \fbox{6}", "6"),
        (r"\boxed{\text{when } x \in \{1, 2\}: 3}", r"when x \in \{1, 2\}: 3"),
        (r"We get \boxed{7}. Therefore \boxed{\frac{1}{", "7"),  # cut off
        (r"so \boxed{} is not it, \boxed{4} is", "4"),
        (r"so $\boxed 248$.", "248"),
        ("6 + 1 = 7 eggs\n#### 7", "7"),
        ("#### 1,200\n\nQuestion: How many?\nAnswer: 9\n#### 9", "1200"),
        ("He has 3.\n#### -4.50 dollars\nThat is 5.", "-4.5"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", "1/2"),
        ("The answer is 5. No wait, the answer is 6 apples.", "6"),
        (r"**Answer:** \(x = 12\)", "12"),
        ("Final answer: she has 18 dollars left", "18"),
        ("The answer is Evelyn.", "evelyn"),
        ("There are 3 boxes of 4, that is 12 in all.", "12"),
        ("Temperatures fall to -5", "-5"),
        ("The difference 9-5 is shown", "5"),
        ("3 + 4 = 7", "7"),
        ("4x-5y=-50", "4x-5y=-50"),
        (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt{3}}{2}"),
        ("Friday", "friday"),
        ("it cannot be said at all", ""),
        ("", ""),
        ("?!", ""),
        (None, ""),
    ],
)
def test_extract_finds_the_final_answer(text, final):
    assert extract(text) == final == math.Math({}, {}, (), None).extract(text)


PIECES = st.sampled_from(
    [r"\boxed{", r"\boxed", "}", "{", "$", r"\frac", r"\text{", "####", "answer is", " ", "\n", "-", "7", "1/2", ",000", "=",
     "x", r"\left(", r"\\", ".", "cm", "ab", r"\sqrt", "^", r"\circ", "\f", "٣", "½",
     "\ud800"]
)  # fmt: skip
TEXTS = st.text(max_size=60) | st.lists(PIECES, max_size=14).map("".join)


@pytest.mark.parametrize(
    "text, said",
    [
        (r"So $\boxed{ \dfrac12 }$, not 5.", r"\dfrac12"),
        (r"\boxed{\boxed{7}} and \boxed{}", r"\boxed{7}"),
        (r"It is \boxed 7 now", "7"),
        ("3 times 6\n####  18 dollars\nQuestion: #### 5", "18 dollars"),
        ("The answer is **1,000**. Or 5.", "1,000"),
        (r"the answer: \( \frac{1}{2} \) of 3", r" \frac{1}{2} "),
        ("the answer is that of 17 men", "17"),
        ("6*3 = 18 ", " 18"),
        ("x = 5", "x = 5"),
        ("it has 12 legs and 3 arms, I think", "3"),
        (" not odd ", "not odd"),
    ],
)
def test_an_answer_is_found_where_it_is_written(text, said):
    assert text[slice(*math.written(text))] == said and math.extract(text) == math.canonical(said) != ""


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(TEXTS)
def test_extract_is_total_and_gives_canonical_answers(text):
    final = extract(text)
    assert isinstance(final, str) and final == final.strip()
    assert canonical(final) == final
    json.dumps(final)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.fractions() | st.decimals(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9, places=3))
def test_a_number_in_a_box_comes_back_with_its_value(value):
    assert grading.exact(extract(rf"thus \boxed{{{value}}}.")) == value


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "{", "}", "1,", "-", " ", "\n", "answer is ", "$", "9", r"\text{", "#", r"\,", "("]
)
def test_extract_takes_no_time_on_long_repetitions(piece):
    began = time.process_time()
    extract(piece * 20_000)
    canonical(piece * (math.MAX_CHARS // len(piece)))
    assert time.process_time() - began < 2.0


def test_a_worked_solution_ends_in_its_box():
    assert math.worked(r"So $x=\boxed{\dfrac12}$.", "1/2") == r"So $x=\boxed{\dfrac12}$."
    assert math.worked("He has <<3*4=12>>12.\n#### 12", "12") == "He has 12.\nThe final answer is \\boxed{12}."
    assert math.worked("", "7") == r"The final answer is \boxed{7}."
    assert math.worked(r"First \boxed{3}.", "7") == "First \\boxed{3}.\nThe final answer is \\boxed{7}."


# Rows


def rows(dataset, count, start=0, **changed):
    return [
        {"id": f"{dataset}/{i}", "problem": f"What is {dataset} + {i}?", "solution": "", "answer": f"{i}.0", "level": "3",
         "subject": "sums", "split": "any", "dataset": dataset}
        | changed
        for i in range(start, start + count)
    ]  # fmt: skip


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / name, "wt", encoding="utf-8") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "sun.train.jsonl.gz", rows("sun", 6))
    write(tmp_path / "quantitative_reasoning", "moon.test.jsonl.gz", rows("moon", 3))
    return tmp_path


def make(root, source=(), target=(), test=(), **changed):
    return math.make(root=str(root), source=source, target=target, test=test, **changed)


def test_local_rows_become_questions_without_answers(root):
    task = make(root, source=("sun:train",), test=("moon:test",))
    first = task.questions("test")[0]
    assert (first.id, first.task, first.prompt, first.options) == ("moon/0", "moon", "What is moon + 0?", ())
    assert first.meta == {"level": "3", "subject": "sums"} and task.interface == "free"
    assert len(task.questions("source")) == 6 and task.gold("target") is None
    assert task.files() == (root / "quantitative_reasoning" / "moon.test.jsonl.gz", root / "sun.train.jsonl.gz")
    assert "2.0" not in repr(task) + repr(task.gold("test")) and repr(task) == "Math(3 test, 6 source, 0 target)"


def test_gold_is_canonical_and_grades_by_value(root):
    gold = make(root, test=("moon:test",)).gold("test")
    assert gold.accepted == (("0",), ("1",), ("2",))
    assert gold.answers().text[1] == r"The final answer is \boxed{1}." and gold.answers().final[1] == "1"
    answers = Answers(("moon/2", "moon/1", "moon/1", "moon/0"), ("", "", "", ""), ("4/2", "1.5", "", "0"))
    assert gold.grade(answers).tolist() == [True, False, False, True]


def test_the_task_agrees_as_its_gold_does(root):
    task = make(root, test=("moon:test",))
    assert task.agree(["1/2", "", "3"], ["0.5", "", "4"]).tolist() == [True, False, False]
    assert task.gold("test").agree == task.grader.agree


def test_an_earlier_roles_problem_is_dropped_from_a_later_one(root):
    write(
        root,
        "x.train.jsonl.gz",
        [r | {"id": f"x{r['id']}", "problem": r["problem"].upper()} for r in rows("moon", 3)] + rows("x", 2),
    )
    task = make(root, target=("x:train",), test=("moon:test",))
    assert [q.id for q in task.questions("target")] == ["x/0", "x/1"]


def test_math500_is_read_from_the_file_of_math(root):
    write(root, "math.test.jsonl.gz", rows("math", 3, math500=True) + rows("math", 2, start=3, math500=False))
    assert len(make(root, test=("math500:test",)).questions("test")) == 3
    assert len(make(root, test=("math:test",)).questions("test")) == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json\n", "not a JSON object"),
        ("[" * 100_000 + "\n", "not a JSON object"),
        ("[1]\n", "is not an object with the fields id, problem, solution, answer, level, subject"),
        (rows("x", 1, problem=None)[0], "field 'problem' is None, allowed is text"),
        (rows("x", 1, problem=" ")[0], "must not be empty"),
        (rows("x", 1, answer=5)[0], "field 'answer' is 5, allowed is text, or null"),
        (rows("x", 1, answer="$ $")[0], "the answer is empty, or longer than 500 characters"),
        (rows("x", 1, solution=["a"])[0], "field 'solution' is"),
        (rows("x", 1, start=5)[0], "id 'x/5' is already on line 1"),
    ],
)  # fmt: skip
def test_a_malformed_row_names_file_line_and_value(root, row, said):
    write(root, "x.train.jsonl.gz", [rows("x", 1, start=5)[0], row])
    with pytest.raises(ValueError, match=rf"(?s)x\.train\.jsonl\.gz:2: .*{said}"):
        make(root, target=("x:train",))


def test_a_target_without_answers_has_no_gold(root):
    write(root, "x.train.jsonl.gz", rows("x", 2, answer=None))
    assert make(root, target=("x:train",)).gold("target") is None
    with pytest.raises(ValueError, match="only the target may be without answers"):
        make(root, source=("x:train",))


class Letters:
    """A tokenizer whose tokens are characters."""

    stop_ids = (0,)

    def encode(self, text, bos):
        return [ord(c) for c in text]


def test_a_student_is_taught_the_boxed_answer_and_shown_worked_solutions(root):
    write(root, "x.train.jsonl.gz", rows("x", 2, solution="Count: <<1+1=2>>2.\n#### 2", answer="2"))
    task = make(root, source=("x:train",), test=("moon:test",))
    shown, question = task.questions("source")[0], task.questions("test")[1]
    text = task.gold("source").answers().text[0]
    asking = Asking(Letters(), "worked", False, 10_000, ((shown, text),))
    prompt, completion = ("".join(map(chr, tokens)) for tokens in asking.answer(question, "1/2"))
    assert completion == " \\boxed{1/2}\0" and extract(completion) == "1/2"
    assert prompt == (
        "Question: What is x + 0?\nAnswer: Count: 2.\nThe final answer is \\boxed{2}.\n\nQuestion: What is moon + 1?\nAnswer:"
    )
    prompt, completion = Asking(Letters(), "boxed", False, 10_000).answer(question, "7")
    assert "".join(map(chr, completion)) == "\n\n\\boxed{7}\0"


HUB_ROWS = {  # the hub's columns, with rows of our own: split -> [(hub id, row, (problem, answer, level, subject))]
    "gsm8k:test": [("openai/gsm8k", {"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 1,002"},
                    ("How many?", "1002", "", ""))],
    "math:train": [("DigitalLearningGmbH/MATH-lighteval",
                    {"problem": "P?", "level": "Level 4", "type": "Algebra", "solution": r"So $\boxed{\dfrac{1}{2}}$."},
                    ("P?", "1/2", "4", "Algebra"))],
    "math500:test": [("HuggingFaceH4/MATH-500",
                      {"problem": "P?", "solution": "s", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 2,
                       "unique_id": "u"}, ("P?", "1/2", "2", "Algebra"))],
    "aime:train": [("di-zhang-fdu/AIME_1983_2024",
                    {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "P?", "Answer": "060", "Part": None},
                    ("P?", "60", "", "AIME 1983"))],
    "aime:test": [("AI-MO/aimo-validation-aime",
                   {"id": 0, "problem": "P?", "solution": "s", "answer": "073", "url": "u"}, ("P?", "73", "", "")),
                  ("math-ai/aime25", {"problem": "Q?", "answer": "70", "id": "0"}, ("Q?", "70", "", ""))],
    "amc:test": [("AI-MO/aimo-validation-amc", {"id": 0, "problem": "P?", "answer": 142.0, "url": "u"}, ("P?", "142", "", ""))],
    "omni_math_rule:test": [("KbsdJames/Omni-MATH",
                             {"domain": ["Mathematics -> Algebra"], "difficulty": 8.0, "problem": "P?", "solution": "s",
                              "answer": "$2^{n}$", "source": "own"}, ("P?", "2^{n}", "8.0", "Mathematics -> Algebra"))],
    "olympiadbench:test": [("Hothan/OlympiadBench",
                            {"id": 7, "question": "P?", "solution": ["s"], "final_answer": ["$2n$"], "context": "Let n be 3.",
                             "is_multiple_answer": False, "unit": None, "subfield": "Algebra"},
                            ("Let n be 3.\nP?", "2n", "", "Algebra"))],
    "minerva_math:test": [("math-ai/minervamath", {"question": "P?", "answer": "4.5e33"}, ("P?", "4.5e33", "", ""))],
    "svamp:test": [("ChilleD/SVAMP",
                    {"ID": "chal-1", "Body": "There are 3 birds. ", "Question": "How many?", "Equation": "( 3.0 )",
                     "Answer": "3.0", "Type": "Sum"}, ("There are 3 birds. How many?", "3", "", "Sum"))],
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: answers with `hub.tables`, records what was asked of it."""
    fake = types.SimpleNamespace(tables={}, asked=[])

    def load_dataset(path, name=None, *, split, revision=None):
        fake.asked.append((path, name, split))
        return fake.tables[path]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return fake


@pytest.mark.parametrize("entry", HUB_ROWS)
def test_hub_columns_are_read(hub, entry):
    hub.tables = {path: [row] for path, row, _ in HUB_ROWS[entry]}
    task = math.make(source=(), target=(), test=(entry,))
    found = [
        (q.prompt, final, q.meta["level"], q.meta["subject"])
        for q, final in zip(task.questions("test"), task.gold("test").answers().final, strict=True)
    ]
    assert found == [want for *_, want in HUB_ROWS[entry]]
    assert all(q.id.startswith(f"{entry.partition(':')[0]}/") for q in task.questions("test"))


def test_every_hub_data_set_is_tested():
    assert {entry.partition(":")[0] for entry in HUB_ROWS} == {*math.HUB}


def test_splits_that_the_hub_names_otherwise_are_found(hub):
    hub.tables = {path: [row] for entry in ("aime:test", "aime:train") for path, row, _ in HUB_ROWS[entry]}
    hub.tables["di-zhang-fdu/AIME_1983_2024"] = [
        HUB_ROWS["aime:train"][0][1] | {"ID": f"{year}-1", "Year": year, "Question": f"In {year}?"}
        for year in (2020, 2021, 2022)
    ]
    task = math.make(source=(), target=("aime:train",), test=("aime:test",))
    assert [q.id for q in task.questions("target")] == ["aime/2020-1", "aime/2021-1"]
    assert hub.asked == [
        ("AI-MO/aimo-validation-aime", None, "train"), ("math-ai/aime25", None, "test"),
        ("di-zhang-fdu/AIME_1983_2024", None, "train"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="math500:train is not on the hub, its splits there are test"):
        math.make(source=(), target=("math500:train",), test=())


def test_problems_without_a_gradable_answer_are_left_out(hub):
    (path, omni, _), (other, olympiad, _) = HUB_ROWS["omni_math_rule:test"][0], HUB_ROWS["olympiadbench:test"][0]
    hub.tables[path] = [omni] + [
        omni | {"problem": f"Q{i}?", "answer": answer}
        for i, answer in enumerate(("All primes that divide n", "x+" * 40 + "1", "", r"\text{no such}"))
    ]
    hub.tables[other] = [olympiad] + [
        olympiad | {"id": 8 + i, "question": f"Q{i}?"} | change
        for i, change in enumerate(
            ({"is_multiple_answer": True}, {"final_answer": ["1", "2"]}, {"final_answer": ["any even number"]})
        )
    ]
    kept = {name: math.make(source=(), target=(), test=(f"{name}:test",)) for name in ("omni_math_rule", "olympiadbench")}
    assert [q.prompt for q in kept["omni_math_rule"].questions("test")] == ["P?", "Q3?"]
    assert len(kept["olympiadbench"].questions("test")) == 1


def test_changed_hub_columns_are_named(hub):
    hub.tables["math-ai/minervamath"] = [{"problem": "P?", "answer": "1"}]
    with pytest.raises(ValueError, match=r"minervamath, split test, row 0: the columns \['answer', 'problem'\].*tasks.math"):
        math.make(source=(), target=(), test=("minerva_math:test",))


@needs_data
def test_reference_solutions_give_their_answers_back():
    for dataset, least in (("gsm8k", 1.0), ("math", 0.999), ("aime", 0.99)):
        task = math.make(root=str(DATA), source=(), target=(f"{dataset}:train",), test=(), max_target=1000)
        gold = task.gold("target")
        final = gold.answers().final
        assert all(map(canonical, final)) and [canonical(f) for f in final] == [*final]
        assert np.mean([extract(text) == f for text, f in zip(gold.text, final, strict=True)]) >= least
        assert gold.grade(Answers(gold.question_id, final, final)).all() and task.grader.counts.num_checked == 0


@needs_data
def test_the_quantitative_roles_are_disjoint():
    task = math.make(
        root=str(DATA), source=("math:train", "omni_math_rule:test"), test=("aime:test", "amc:test", "math500:test")
    )
    ids = {role: {q.id for q in task.questions(role)} for role in ("source", "target", "test")}
    assert len(ids["target"]) > 500 and len(set().union(*ids.values())) == sum(map(len, ids.values()))


@pytest.mark.parametrize("arg", [None, "source=omni", "smollm2_135m_360m", "gemma3_1b_qwen3_1.7b,label=majority,seeds=3"])
def test_the_quantitative_config_asks_for_what_there_is(arg):
    config = quantitative.get_config(arg)
    assert check(config)
    entries = {role: config.tasks[role] for role in ("source", "target", "test")}
    assert all(split in math.HUB[dataset] for (entry,) in entries.values() for dataset, _, split in [entry.partition(":")])
    longest = config.teacher.shape.row_length - config.teacher.max_new_tokens
    assert longest >= 1000 and len(config.seeds) == (3 if arg and "seeds" in arg else 1)
    if (DATA / "quantitative_reasoning").is_dir():
        task = math.make(root=str(DATA), seed=0, **{k: v for k, v in config.tasks.items() if k not in ("name", "root", "seed")})
        assert len(task.gold("target")) > config.select.n and len(task.questions("test")) > 100


def test_the_quantitative_config_names_its_words():
    with pytest.raises(ValueError, match="pair 'qwen': allowed are qwen3_1.7b_14b"):
        quantitative.get_config("qwen")
    with pytest.raises(ValueError, match="source 'mmlu': allowed are math, omni, gsm8k"):
        quantitative.get_config("source=mmlu")


CONFIG = """
import runpy
from experiments.configs import base
from tests import toy

def get_config(arg=None):
    c = toy.get_config()
    c.tasks = base.ConfigDict({{"name": "math", **base.keywords("task", "math"), "root": {root!r}}})
    c.tasks.update(source=("a:train",), target=("b:train",), test=("c:train",))
    for who in ("teacher", "student"):
        c[who].update(model={root!r} + "/model", max_new_tokens=4)
    c.teacher.update(num_samples=4, temperature=1.0, label="majority")
    c.methods, c.select.n = ("naive", "ntf"), 5
    return c
"""


@pytest.mark.slow
def test_a_whole_run_on_problems_is_graded_as_mathematics(tmp_path):
    words = word_level(tuple("0123456789+?"))
    shape = dataclasses.replace(tiny.CONFIG, vocab_size=words.vocab_size)
    hf_io.save(LM(shape, decoder.init(shape, jax.random.key(0)), words), tmp_path / "model")
    for first, dataset in enumerate("abc"):
        problems = [" ".join(f"{first}{i:02d}+?") for i in range(40)]
        answers = [rf"\sqrt{{{(i % 10) ** 2}}}" if i % 2 else str(i % 10) for i in range(40)]
        made = [row | {"problem": p, "answer": a} for row, p, a in zip(rows(dataset, 40), problems, answers, strict=True)]
        write(tmp_path, f"{dataset}.train.jsonl.gz", made)
    (tmp_path / "config.py").write_text(CONFIG.format(root=str(tmp_path)))
    command = [sys.executable, "-m", "experiments.main", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    graded = re.search(r"grading  (\d+) pairs, (\d+) checked with math-verify: 0 timed out", done.stdout + done.stderr)
    assert graded and int(graded[1]) >= 200 and int(graded[2]) > 20
    again = subprocess.run(command, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True)
    assert again.returncode == 0 and "computed in" not in again.stdout + again.stderr
