"""Multiple choice over world knowledge: fourteen data sets by name, from the hub or from local files.

Stage 1 of the path, out: `Question`s of three roles, see `rows` for how they are loaded and kept apart. The final answer of
a question is the text of an option. The roles' defaults are those of the world-knowledge experiments.

Local files: `<root>/<dataset>.<split>.jsonl[.gz]`, or the same under `<root>/world_knowledge/`, one object a line:
`{"id", "question", "choices": [...], "answer": index or null, "subject"}`.

Deviations:
    1. SciQ is asked without its supporting passage, MedQA from the hub has four options (local files: five).
    2. HellaSwag keeps its raw markers such as `[header]`.
    3. A row whose options are all equal is dropped and counted (any answer would be right); with two equal options the
       row stays, and either counts. Other rows that cannot be asked (an empty option, one option) are errors in a local
       file, where they can be mended; from the hub they are dropped and counted, up to one in a hundred.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from w2s_jax.tasks import rows
from w2s_jax.tasks.rows import Hub
from w2s_jax.types import Gold, Question

VERSION = "1"


class Row(NamedTuple):
    """One row of a data set, whatever its origin; `answer` is an index into `choices`, None where it is not public."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    subject: str = ""
    group: str = ""


def _mmlu(row, place):
    return Row(f"mmlu/{place}", row["question"], tuple(row["choices"]), row["answer"], row["subject"])


def _mmlu_pro(row, place):
    return Row(f"mmlu_pro/{row['question_id']}", row["question"], tuple(row["options"]), row["answer_index"], row["category"])


def _keyed(dataset: str, question: str, subject: str = "") -> Callable[[Mapping[str, Any], str], Row]:
    """Columns of ARC, OpenBookQA and CommonsenseQA: labelled choices (letters or digits) and the answer's label."""

    def columns(row, place):
        label = tuple(row["choices"]["label"])
        answer = label.index(row["answerKey"]) if row["answerKey"] else None
        about = subject or row["question_concept"]
        return Row(f"{dataset}/{row['id']}", row[question], tuple(row["choices"]["text"]), answer, about)

    return columns


def _sciq(row, place):
    # The hub lists the right answer apart; the order shown depends on the question's texts alone.
    right = row["correct_answer"]
    choices = (right, row["distractor1"], row["distractor2"], row["distractor3"])
    order = sorted(range(4), key=lambda i: (rows.digest(row["question"], choices[i]), i))
    return Row(f"sciq/{place}", row["question"], tuple(choices[i] for i in order), order.index(0), "science")


def _social_iqa(row, place):
    answer = int(row["label"]) - 1 if str(row["label"]).strip() else None
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return Row(f"social_iqa/{place}", f"{row['context']} {row['question']}", choices, answer, "social")


def _boolq(row, place):
    question = f"{row['passage']}\n{row['question'].rstrip('?')}?"
    return Row(f"boolq/{place}", question, ("yes", "no"), 0 if row["answer"] else 1, "reading")


def _hellaswag(row, place):
    answer = int(row["label"]) if str(row["label"]) else None
    subject = row["source_id"].partition("~")[0]
    return Row(f"hellaswag/{place}", f"{row['activity_label']}: {row['ctx']}", tuple(row["endings"]), answer, subject)


def _piqa(row, place):
    return Row(f"piqa/{place}", row["goal"], (row["sol1"], row["sol2"]), _known(row["label"]), "physical")


def _medmcqa(row, place):
    choices = (row["opa"], row["opb"], row["opc"], row["opd"])
    return Row(f"medmcqa/{row['id']}", row["question"], choices, _known(row["cop"]), row["subject_name"] or "")


def _medqa(row, place):
    label = sorted(row["options"])
    choices = tuple(row["options"][name] for name in label)
    return Row(f"medqa/{place}", row["question"], choices, label.index(row["answer_idx"]), row["meta_info"])


def _cosmosqa(row, place):
    choices = (row["answer0"], row["answer1"], row["answer2"], row["answer3"])
    return Row(f"cosmosqa/{place}", f"{row['context']}\n{row['question']}", choices, _known(row["label"]), "commonsense")


def _known(label: int) -> int | None:
    return None if label < 0 else label


PARQUET = "refs/convert/parquet"
HUB = {
    "mmlu": Hub("cais/mmlu", "all", _mmlu),
    "mmlu_pro": Hub("TIGER-Lab/MMLU-Pro", None, _mmlu_pro),
    "arc_easy": Hub("allenai/ai2_arc", "ARC-Easy", _keyed("arc_easy", "question", "science")),
    "arc_challenge": Hub("allenai/ai2_arc", "ARC-Challenge", _keyed("arc_challenge", "question", "science")),
    "openbookqa": Hub("allenai/openbookqa", "main", _keyed("openbookqa", "question_stem", "science")),
    "commonsenseqa": Hub("tau/commonsense_qa", None, _keyed("commonsenseqa", "question")),
    "sciq": Hub("allenai/sciq", None, _sciq),
    "social_iqa": Hub("allenai/social_i_qa", None, _social_iqa, PARQUET),
    "boolq": Hub("google/boolq", None, _boolq),
    "hellaswag": Hub("Rowan/hellaswag", None, _hellaswag),
    "piqa": Hub("ybisk/piqa", None, _piqa, PARQUET),
    "medmcqa": Hub("openlifescienceai/medmcqa", None, _medmcqa),
    "medqa": Hub("GBaker/MedQA-USMLE-4-options", None, _medqa),
    "cosmosqa": Hub("allenai/cosmos_qa", None, _cosmosqa, PARQUET),
}
PASSAGE_ABOVE_QUESTION = ("boolq", "cosmosqa")  # their questions on one passage form a group: they are not independent


def _read(found: Mapping[str, Any], where: str) -> Row:
    """Reads an object of a local file; types are checked here, contents in `_problem`."""
    id, question = rows.text_field(found, "id", where), rows.text_field(found, "question", where)
    subject = rows.text_field(found, "subject", where, "")
    choices, answer = found.get("choices"), found.get("answer")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: field 'choices' is {choices!r}, allowed is a list of texts")
    if isinstance(answer, bool) or not isinstance(answer, int | None):
        raise ValueError(f"{where}: field 'answer' is {answer!r}, allowed is an index into 'choices', or null")
    return Row(id, question, tuple(choices), answer, subject)


def _tidy(dataset: str, row: Row) -> Row:
    """Strips outer spaces, so that an option's text is canonical, and marks questions on one passage.

    The hub leaves None where a text is missing.
    """
    question = (row.question or "").strip()
    passage = question.rpartition("\n")[0] if dataset in PASSAGE_ABOVE_QUESTION else ""
    group = f"{dataset}/{rows.digest(passage).hex()}" if passage else ""
    choices = tuple((choice or "").strip() for choice in row.choices)
    return row._replace(question=question, choices=choices, subject=row.subject or "", group=group)


def _problem(row: Row) -> str:
    """Says why a row cannot be asked, "" if it can."""
    if not row.id or not row.question:
        return f"id {row.id!r} and question {row.question[:80]!r} must not be empty"
    if len(row.choices) < 2:
        return f"{len(row.choices)} choices, allowed are 2 or more"
    if "" in row.choices:
        return f"choice {row.choices.index('')} is empty, allowed is text"
    if row.answer is not None and not 0 <= row.answer < len(row.choices):
        return f"answer {row.answer} is out of range; allowed are 0 to {len(row.choices) - 1}, null where it is not known"
    return ""


def _spared(row: Row) -> str:
    return f"all {len(row.choices)} choices are {row.choices[0][:80]!r}" if len(set(row.choices)) == 1 else ""


def _asks(row: Row) -> tuple[str, frozenset[str]]:
    return rows.plain(row.question), frozenset(map(rows.plain, row.choices))


def _whole(hub: Hub, split: str) -> tuple[Hub, ...]:
    return (hub,)


DOMAIN = rows.Domain(
    module=__name__,
    folder="world_knowledge",
    hub={name: functools.partial(_whole, hub) for name, hub in HUB.items()},
    fields=("id", "question", "choices", "answer", "subject"),
    read=_read,
    tidy=_tidy,
    problem=_problem,
    spared=_spared,
    asks=_asks,
)


class Choice(rows.Roles):
    """A multiple-choice task; see `make`."""

    interface = "choice"

    def extract(self, text: str) -> str:
        """See `extract`."""
        return extract(text)


def make(
    *,
    root: str = "",
    source: Sequence[str] = ("mmlu:validation", "mmlu:test"),
    target: Sequence[str] = ("openbookqa:train", "arc_easy:train", "arc_challenge:train", "social_iqa:train"),
    test: Sequence[str] = (
        "openbookqa:test",
        "arc_challenge:test",
        "arc_easy:test",
        "sciq:validation",
        "social_iqa:validation",
    ),
    max_source: int | None = None,
    max_target: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
) -> Choice:
    """Reads the questions of all three roles.

    Args:
        root: folder with local files, "" = the hub.
        source, target, test: "dataset:split" entries of each role; a role may be empty.
        max_source, max_target, max_test: keep at most this many questions, spread evenly over the role's data sets: a
            random subset keyed by `seed` and the question's id, so that a smaller cap gives a subset of a larger one.
            Overlap between roles is removed before, so that no cap changes another role.
        seed: key of the subsets; it does not change the order of questions or options.

    Raises:
        ValueError: unknown data set, missing file, unreadable row (with file and line), no row left, a role that is
            labelled in part only, an unlabelled source or test.
    """
    entries = {"test": test, "source": source, "target": target}
    caps = {"test": max_test, "source": max_source, "target": max_target}
    loaded, files = rows.load(DOMAIN, entries, root, caps, seed)
    questions, gold = {}, {}
    for role, items in loaded.items():
        questions[role] = tuple(
            Question(row.id, dataset, row.question, row.choices, {"subject": row.subject}, row.group)
            for dataset, row, _ in items
        )
        gold[role] = (
            Gold(tuple(row.id for _, row, _ in items), tuple((row.choices[row.answer],) for _, row, _ in items))
            if rows.labelled(items)
            else None
        )
    return Choice(questions, gold, files)


_ANSWER_IS = re.compile(r"(?is)(?:the\s+)?(?:(?:correct|best|final)\s+)?answer(?:\s+is\s*:?|\s*:)\s*(.+)")
_LETTER = re.compile(r"\(?([A-J])\)?[.):]?")


def extract(text: str) -> str:
    """Finds the answer in a text: a letter A to J where that is all it says, otherwise its words; "" if there are none.

    An option's own text comes back as it is (but for outer spaces, and an option that is a bracketed letter).

    >>> extract(" (B)."), extract("The answer is: the moon"), extract("iron\\nQuestion: What burns?"), extract("  ")
    ('B', 'the moon', 'iron', '')
    """
    if not isinstance(text, str):
        return ""
    text = text.partition("\nQuestion:")[0].strip()
    if found := _ANSWER_IS.fullmatch(text):
        text = found[1].strip()
    found = _LETTER.fullmatch(text.removesuffix("."))
    return found[1] if found else text
