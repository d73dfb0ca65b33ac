"""Multiple-choice tasks: roles never overlap, gold stays inside, every error names its file and line."""

import gzip
import json
import os
import pathlib
import sys
import types

import pytest

from w2s_jax.tasks import choice
from w2s_jax.tasks.rows import PRECEDENCE
from w2s_jax.types import Answers

DATA = pathlib.Path(os.environ.get("W2S_DATA") or pathlib.Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "world_knowledge").is_dir(), reason="no shared data: set W2S_DATA")


def rows(dataset, count, start=0, **changed):
    return [
        {
            "id": f"{dataset}/{i}",
            "question": f"What is {dataset} number {i}?",
            "choices": [f"{dataset} {i} {name}" for name in ("one", "two", "three")],
            "answer": i % 3,
            "subject": "counting",
            "split": "any",
            "dataset": dataset,
        }
        | changed
        for i in range(start, start + count)
    ]


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(folder / name, "wt", encoding="utf-8") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def make(root, source=(), target=(), test=(), **changed):
    return choice.make(root=str(root), source=source, target=target, test=test, **changed)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "sun.train.jsonl", rows("sun", 12))
    write(tmp_path / "world_knowledge", "moon.test.jsonl.gz", rows("moon", 4))
    return tmp_path


def test_files_of_both_layouts_become_questions_without_answers(root):
    task = make(root, source=("sun:train",), test=("moon:test",))
    first = task.questions("test")[0]
    assert (first.id, first.task, first.prompt) == ("moon/0", "moon", "What is moon number 0?")
    assert first.options == ("moon 0 one", "moon 0 two", "moon 0 three")
    assert first.meta == {"subject": "counting"} and first.group == ""
    assert [q.id for q in task.questions("source")] == [f"sun/{i}" for i in range(12)]
    assert task.questions("target") == () and task.gold("target") is None
    assert task.interface == "choice"
    assert task.files() == (root / "world_knowledge" / "moon.test.jsonl.gz", root / "sun.train.jsonl")
    with pytest.raises(ValueError, match="role 'train'"):
        task.questions("train")


def test_gold_grades_by_the_options_text_and_is_not_shown(root):
    task = make(root, test=("moon:test",))
    ids = tuple(q.id for q in task.questions("test"))
    final = ("moon 0 one", "moon 1 one", "moon 2 three", "")
    assert task.gold("test").grade(Answers(ids, final, final)).tolist() == [True, False, True, False]
    assert "moon 0 one" not in repr(task) + repr(task.gold("test"))


def test_outer_spaces_are_not_part_of_an_answer(root):
    write(root, "x.test.jsonl", rows("x", 1, question=" Where? ", choices=[" up ", "down\n"], answer=1))
    task = make(root, test=("x:test",))
    assert (task.questions("test")[0].prompt, task.questions("test")[0].options) == ("Where?", ("up", "down"))
    assert task.gold("test").answers().final == ("down",)


def test_either_of_two_equal_options_counts_and_all_equal_ones_are_dropped(root):
    same = rows("x", 1, choices=["a", "a", "b"], answer=1) + rows("x", 1, start=1, choices=["a", " a"], answer=0)
    write(root, "x.test.jsonl", same)
    task = make(root, test=("x:test",))
    assert [q.id for q in task.questions("test")] == ["x/0"]
    assert task.gold("test").grade(Answers(("x/0",), ("a",), ("a",))).all()


def test_what_an_earlier_role_asks_is_dropped_from_the_later_one(root, caplog):
    again = [row | {"id": f"new/{row['id']}"} for row in rows("moon", 4)]
    again[0]["question"] = "WHAT is  moon number 0?"  # case and spaces do not hide a question
    again[1]["choices"] = again[1]["choices"][::-1]  # nor does the order of its options
    again[2]["choices"] = again[2]["choices"] + [f"more {i}" for i in range(7)]  # nor more of them, as in MMLU-Pro
    again[3]["choices"] = ["other", "options"]  # but the same words may ask something else: "Which is true?"
    write(root, "x.train.jsonl", rows("sun", 12) + again)
    with caplog.at_level("INFO", logger="absl"):
        task = make(root, source=("sun:train",), target=("x:train", "sun:train"), test=("moon:test",))
    assert [q.id for q in task.questions("target")] == ["new/moon/3"]
    assert len(task.questions("source")) == 12 and len(task.questions("test")) == 4
    assert "target: 1 questions of 28 rows, dropped: 27 that an earlier role" in caplog.text


def test_test_goes_before_source_and_source_before_target(root):
    write(root, "y.train.jsonl", rows("y", 2))
    everything = ("sun:train", "moon:test", "y:train")
    task = make(root, source=everything[:2], target=everything, test=("moon:test",))
    got = {role: {q.task for q in task.questions(role)} for role in ("test", "source", "target")}
    assert got == {"test": {"moon"}, "source": {"sun"}, "target": {"y"}}


def test_a_role_with_nothing_of_its_own_is_refused(root):
    with pytest.raises(ValueError, match="all 12 rows of the target occur in an earlier role.*--config.tasks.target"):
        make(root, source=("sun:train",), target=("sun:train",))


def test_repeats_within_a_role_are_dropped_but_variants_stay(root):
    base = rows("x", 1)[0]
    more = {"id": "more", "choices": base["choices"] + ["four"]}
    write(root, "x.train.jsonl", [base, base | {"id": "again"}, base | more])
    assert [q.id for q in make(root, target=("x:train",)).questions("target")] == ["x/0", "more"]


def test_caps_are_even_over_data_sets_and_nested(root):
    write(root, "mars.train.jsonl", rows("mars", 300))
    write(root, "venus.train.jsonl", rows("venus", 200))
    entries = ("mars:train", "venus:train", "sun:train")

    def kept(cap, seed=0):
        return [q.id for q in make(root, target=entries, max_target=cap, seed=seed).questions("target")]

    def counts(ids):
        return [sum(i.startswith(name) for i in ids) for name in ("mars", "venus", "sun")]

    assert counts(kept(30)) == [10, 10, 10]
    assert counts(kept(100)) == [44, 44, 12]  # the small one gives all it has
    assert counts(kept(1000)) == counts(kept(None)) == [300, 200, 12]
    assert set(kept(30)) < set(kept(31)) < set(kept(100))
    hundred = kept(100)
    assert hundred == [i for i in kept(None) if i in set(hundred)]  # in the files' order
    assert kept(100) == hundred != kept(100, seed=1)
    assert kept(30) != [f"mars/{i}" for i in range(10)] + [f"venus/{i}" for i in range(10)] + [f"sun/{i}" for i in range(10)]


def test_a_cap_on_one_role_does_not_change_another(root):
    write(root, "x.train.jsonl", rows("sun", 12) + rows("x", 3))
    free = make(root, source=("sun:train",), target=("x:train",))
    capped = make(root, source=("sun:train",), target=("x:train",), max_source=2, seed=3)
    assert len(capped.questions("source")) == len(capped.gold("source")) == 2
    assert capped.questions("target") == free.questions("target")


def test_a_target_without_answers_has_no_gold(root):
    bare = [{k: v for k, v in row.items() if k != "answer"} for row in rows("x", 2)] + rows("x", 2, start=2, answer=None)
    write(root, "x.train.jsonl", bare)
    task = make(root, target=("x:train",))
    assert len(task.questions("target")) == 4 and task.gold("target") is None
    for role in ("source", "test"):
        with pytest.raises(ValueError, match=f"x.train.jsonl:1: no answer.*only the target.*--config.tasks.{role}"):
            make(root, **{role: ("x:train",)})


def test_half_labelled_roles_are_refused(root):
    write(root, "x.train.jsonl", rows("x", 2) + rows("x", 1, start=2, answer=None))
    write(root, "y.train.jsonl", rows("y", 2, answer=None))
    with pytest.raises(ValueError, match=r"x.train.jsonl:3: no answer.*1 of 3"):
        make(root, target=("x:train",))
    with pytest.raises(ValueError, match=r"y.train.jsonl:1: no answer.*2 of 14"):
        make(root, target=("sun:train", "y:train"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json\n", r"not a JSON object.*'\{not json'"),
        ('["a list"]\n', "is not an object with the fields"),
        (rows("x", 1, id=7)[0], "field 'id' is 7, allowed is text"),
        (rows("x", 1, question=None)[0], "field 'question' is None"),
        (rows("x", 1, question=" ")[0], "must not be empty"),
        (rows("x", 1, choices="AB")[0], "field 'choices' is 'AB', allowed is a list"),
        (rows("x", 1, choices=["a", 2])[0], "field 'choices'"),
        (rows("x", 1, choices=["a"], answer=0)[0], "1 choices, allowed are 2 or more"),
        (rows("x", 1, choices=["a", " "])[0], "choice 1 is empty"),
        (rows("x", 1, answer="A")[0], "field 'answer' is 'A', allowed is an index"),
        (rows("x", 1, answer=True)[0], "field 'answer' is True"),
        (rows("x", 1, answer=3)[0], "answer 3 is out of range; allowed are 0 to 2"),
        (rows("x", 1, answer=-1)[0], "answer -1 is out of range.*null where it is not known"),
        (rows("x", 1, start=5)[0], "id 'x/5' is already on line 2"),
    ],
)
def test_a_malformed_row_names_file_line_and_value(root, row, said):
    write(root, "x.train.jsonl", ["\n", rows("x", 1, start=5)[0], row])
    with pytest.raises(ValueError, match=rf"(?s)x\.train\.jsonl:3: .*{said}"):
        make(root, target=("x:train",))


def test_one_id_cannot_name_two_questions(root):
    write(root, "x.train.jsonl", [rows("x", 1, id="sun/3")[0]])
    with pytest.raises(ValueError, match=r"x.train.jsonl:1: id 'sun/3' is already used at .*sun.train.jsonl:4"):
        make(root, source=("sun:train",), target=("x:train",))


def test_unreadable_and_empty_files_are_named(root):
    write(root, "x.train.jsonl", ["\n"])
    with pytest.raises(ValueError, match="x.train.jsonl has no rows"):
        make(root, target=("x:train",))
    whole = (root / "world_knowledge" / "moon.test.jsonl.gz").read_bytes()
    broken = (whole[:-20], whole[:30] + b"\xff" * 30 + whole[60:], b"not packed at all")
    for content in broken:
        (root / "y.train.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match="y.train.jsonl.gz cannot be read to its end"):
            make(root, target=("y:train",))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target": ("sum:train",)}, r"--config.tasks.target .*unknown data set 'sum'.*did you mean 'sun'"),
        ({"target": ("arc_esay:train",)}, "did you mean 'arc_easy'"),
        ({"target": ("sun:test",)}, r"sun:test has 0 files .*splits of 'sun' found there: train"),
        ({"target": ("mmlu:test",)}, "mmlu:test has 0 files .*found there: none"),
        ({"target": ("sun",)}, "entry 'sun'; write 'dataset:split'"),
        ({"target": "sun:train"}, r"is the string 'sun:train'; write a tuple .*\('sun:train',\)"),
        ({"target": ("sun:train", "sun:train")}, "names an entry twice"),
        ({"max_test": 0}, "--config.tasks.max_test is 0; allowed are None"),
    ],
)
def test_config_errors_name_the_line_to_change(root, changed, said):
    with pytest.raises(ValueError, match=said):
        make(root, **changed)


def test_boolq_questions_on_one_passage_form_a_group(root):
    prompts = ("Ice -- It melts.\nis ice cold?", "Ice -- It melts.\ndoes ice melt?", "Sand -- It is dry.\nis sand wet?")
    write(root, "boolq.train.jsonl", [rows("b", 1, start=i, question=p)[0] for i, p in enumerate(prompts)])
    group = [q.group for q in make(root, target=("boolq:train",)).questions("target")]
    assert group[0] == group[1] != group[2] and all(g.startswith("boolq/") for g in group)


HUB_ROWS = {  # the hub's columns, with rows of our own: (row, question, choices, answer, subject)
    "mmlu": (
        {"question": "What is 2 + 2?", "subject": "maths", "choices": ["3", "4", "5", "6"], "answer": 1},
        ("What is 2 + 2?", ("3", "4", "5", "6"), 1, "maths"),
    ),
    "mmlu_pro": (
        {"question_id": 9, "question": "Q?", "options": ["a", "b", "c"], "answer": "C", "answer_index": 2,
         "cot_content": "", "category": "law", "src": "own"},
        ("Q?", ("a", "b", "c"), 2, "law"),
    ),
    "arc_easy": (
        {"id": "K1", "question": "Q?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        ("Q?", ("a", "b", "c"), 2, "science"),
    ),
    "arc_challenge": (
        {"id": "K1", "question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        ("Q?", ("a", "b"), 1, "science"),
    ),
    "openbookqa": (
        {"id": "7-1", "question_stem": "Rain is", "choices": {"text": ["dry", "wet"], "label": ["A", "B"]}, "answerKey": "B"},
        ("Rain is", ("dry", "wet"), 1, "science"),
    ),
    "commonsenseqa": (
        {"id": "f0", "question": "Where?", "question_concept": "bed", "choices": {"label": ["A", "B"], "text": ["in", "on"]},
         "answerKey": "A"},
        ("Where?", ("in", "on"), 0, "bed"),
    ),
    "social_iqa": (
        {"context": "Kim left.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "2"},
        ("Kim left. Why?", ("a", "b", "c"), 1, "social"),
    ),
    "boolq": (
        {"question": "is ice cold", "answer": False, "passage": "Ice is warm here."},
        ("Ice is warm here.\nis ice cold?", ("yes", "no"), 1, "reading"),
    ),
    "hellaswag": (
        {"ind": 3, "activity_label": "Baking", "ctx_a": "A cook stirs.", "ctx_b": "she", "ctx": "A cook stirs. she",
         "endings": ["a", "b", "c", "d"], "source_id": "wikihow~12", "split": "val", "split_type": "indomain", "label": "3"},
        ("Baking: A cook stirs. she", ("a", "b", "c", "d"), 3, "wikihow"),
    ),
    "piqa": (
        {"goal": "Open a jar", "sol1": "turn", "sol2": "pull", "label": 0},
        ("Open a jar", ("turn", "pull"), 0, "physical"),
    ),
    "medmcqa": (
        {"id": "u-1", "question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2, "choice_type": "single",
         "exp": None, "subject_name": "Anatomy", "topic_name": None},
        ("Q?", ("a", "b", "c", "d"), 2, "Anatomy"),
    ),
    "medqa": (
        {"question": "Q?", "answer": "d", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "meta_info": "step1",
         "answer_idx": "D", "metamap_phrases": ["q"]},
        ("Q?", ("a", "b", "c", "d"), 3, "step1"),
    ),
    "cosmosqa": (
        {"id": "3Q", "context": "It rained.", "question": "Why run?", "answer0": "a", "answer1": "b", "answer2": "c",
         "answer3": "d", "label": 1},
        ("It rained.\nWhy run?", ("a", "b", "c", "d"), 1, "commonsense"),
    ),
}  # fmt: skip
SCIQ = {
    "question": "What melts?",
    "distractor3": "c",
    "distractor1": "a",
    "distractor2": "b",
    "correct_answer": "ice",
    "support": "",
}


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: answers with `hub.tables`, records what was asked of it."""
    fake = types.SimpleNamespace(tables={}, asked=[])

    def load_dataset(path, name=None, *, split, revision=None):
        fake.asked.append((path, name, split, revision))
        if path not in fake.tables:
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub")
        return fake.tables[path]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return fake


@pytest.mark.parametrize("dataset", HUB_ROWS)
def test_hub_columns_are_read(dataset):
    row, want = HUB_ROWS[dataset]
    got = choice.HUB[dataset].columns(row, "train/5")
    assert (got.question, got.choices, got.answer, got.subject) == want
    assert got.id.startswith(f"{dataset}/")


@pytest.mark.parametrize(
    ("dataset", "hidden"),
    [("openbookqa", {"answerKey": ""}), ("commonsenseqa", {"answerKey": ""}), ("social_iqa", {"label": ""}),
     ("hellaswag", {"label": ""}), ("piqa", {"label": -1}), ("medmcqa", {"cop": -1}), ("cosmosqa", {"label": -1})],
)  # fmt: skip
def test_a_hidden_hub_answer_is_none(dataset, hidden):
    assert choice.HUB[dataset].columns(HUB_ROWS[dataset][0] | hidden, "test/0").answer is None


def test_sciq_order_depends_on_texts_only_and_hides_the_answer():
    read = choice.HUB["sciq"].columns
    assert read(SCIQ, "test/0").choices == read(SCIQ, "test/99").choices
    place = []
    for i in range(200):
        row = read(SCIQ | {"question": f"What melts at {i}?"}, f"test/{i}")
        assert sorted(row.choices) == ["a", "b", "c", "ice"] and row.choices[row.answer] == "ice"
        place.append(row.answer)
    assert all(30 <= place.count(k) <= 70 for k in range(4))  # 50 each, sd 6


def test_every_hub_data_set_is_tested_and_loads_without_remote_code(hub):
    assert {*HUB_ROWS, "sciq"} == {*choice.HUB}
    hub.tables = {choice.HUB[name].path: [row] for name, (row, _) in HUB_ROWS.items() if name != "arc_challenge"}
    hub.tables["allenai/sciq"] = [SCIQ]
    for name in {*choice.HUB} - {"arc_challenge"}:
        task = choice.make(source=(), target=(), test=(f"{name}:validation",))
        assert len(task.questions("test")) == len(task.gold("test")) == 1 and task.files() == ()
    assert {path for path, *_, revision in hub.asked if revision == "refs/convert/parquet"} == {
        "allenai/social_i_qa", "ybisk/piqa", "allenai/cosmos_qa",
    }  # fmt: skip


def test_no_network_points_to_local_files(hub):
    with pytest.raises(ValueError, match=r"(?s)sciq:test cannot be loaded.*Couldn't reach.*--config.tasks.root=DIR"):
        choice.make(source=(), target=(), test=("sciq:test",))
    with pytest.raises(ValueError, match="unknown data set 'sun'"):
        choice.make(source=(), target=(), test=("sun:test",))


def test_changed_hub_columns_are_named(hub):
    hub.tables["ybisk/piqa"] = [{"goal": "Open a jar", "solutions": ["turn", "pull"], "label": 0}]
    with pytest.raises(ValueError, match=r"ybisk/piqa, split test, row 0: the columns \['goal', 'label', 'solutions'\].*sol1"):
        choice.make(source=(), target=(), test=("piqa:test",))


def test_few_bad_hub_rows_are_dropped_many_are_refused(hub, caplog):
    good = HUB_ROWS["piqa"][0]
    table = [good | {"goal": f"Open jar {i}"} for i in range(200)]
    hub.tables["ybisk/piqa"] = [*table, good | {"sol2": None}]
    task = choice.make(source=(), target=(), test=("piqa:test",))
    assert len(task.questions("test")) == 200 and "dropped 1 of 201 rows" in caplog.text and "row 200: choice 1" in caplog.text
    hub.tables["ybisk/piqa"] = [*table[:50], good | {"sol2": None}]
    with pytest.raises(
        ValueError, match="1 of 51 rows of ybisk/piqa, split test, cannot be asked. .*row 50: choice 1 is empty"
    ):
        choice.make(source=(), target=(), test=("piqa:test",))


@pytest.mark.parametrize(
    ("text", "final"),
    [("B", "B"), (" (C). ", "C"), ("D)", "D"), ("The correct answer is: (A).", "A"), ("Answer: plants", "plants"),
     ("answer is ice.", "ice."), (" ice\nQuestion: next?", "ice"), ("K", "K"), ("c", "c"), ("B. cereus", "B. cereus"),
     ("A cat", "A cat"), ("answers vary", "answers vary"), ("", ""), (" \n ", ""), ("Answer:", "Answer:"), (None, "")],
)  # fmt: skip
def test_extract_finds_a_letter_or_the_words_and_never_raises(text, final):
    assert choice.extract(text) == final == choice.Choice({}, {}, ()).extract(text)


@needs_data
def test_the_world_knowledge_roles_are_disjoint_and_graded():
    task = choice.make(root=str(DATA), max_source=500, max_target=400, max_test=250)
    ids = {role: {q.id for q in task.questions(role)} for role in PRECEDENCE}
    assert {role: len(i) for role, i in ids.items()} == {"test": 250, "source": 500, "target": 400}
    assert len(set().union(*ids.values())) == 1150
    by_task = [sum(q.task == name for q in task.questions("target")) for name in ("openbookqa", "arc_easy", "social_iqa")]
    assert by_task == [100, 100, 100]
    for role in PRECEDENCE:
        gold = task.gold(role)
        assert gold.grade(gold.answers()).all()
        option = {q.id: q.options for q in task.questions(role)}
        assert all(final in option[i] for i, final in zip(gold.question_id, gold.answers().final, strict=True))
        assert all(choice.extract(text) == text for options in option.values() for text in options)


@needs_data
def test_mmlu_pro_loses_what_mmlu_asks():
    task = choice.make(root=str(DATA), source=(), target=("mmlu_pro:test",), test=("mmlu:test",))
    asked = {" ".join(q.prompt.casefold().split()) for q in task.questions("test")}
    left = [q for q in task.questions("target") if " ".join(q.prompt.casefold().split()) in asked]
    assert 4000 < len(task.questions("target")) < 5000 and len(left) < 20
