"""Mathematics with free answers: ten data sets by name, from the hub or from local files.

Stage 1 of the path, out: `Question`s of three roles, see `rows` for how they are loaded and kept apart. The final answer is
a string in one canonical form (`canonical`); whether two of them are the same answer is decided by `grading.Grader`. The
roles' defaults are those of the quantitative experiments (MATH to AIME).

Local files: `<root>/<dataset>.<split>.jsonl[.gz]`, or the same under `<root>/quantitative_reasoning/`, one object a line:
`{"id", "problem", "solution" ("" if none), "answer": text or null, "level", "subject"}`. `math500` is read from the file of
`math`, rows with `"math500": true`.

The hub's columns, and what is made of them (our splits are named as in the local files, whatever the hub calls them):

    data set        splits        hub id                            problem             answer          level, subject
    gsm8k           train, test   openai/gsm8k (main)               question            after ####      -, -
    math            train, test   DigitalLearningGmbH/MATH-lighteval  problem           box of solution level, type
    math500         test          HuggingFaceH4/MATH-500            problem             answer          level, subject
    aime            train         di-zhang-fdu/AIME_1983_2024       Question            Answer          - , Year (to 2021)
                    test          AI-MO/aimo-validation-aime        problem             answer          -, - (2022 to 2024)
                                  math-ai/aime25                    problem             answer          -, -
    amc             test          AI-MO/aimo-validation-amc         problem             answer          -, -
    omni_math_rule  test          KbsdJames/Omni-MATH               problem             answer          difficulty, domain
    olympiadbench   test          Hothan/OlympiadBench (OE_TO_maths_en_COMP)  question  final_answer    -, subfield
    minerva_math    test          math-ai/minervamath               question            answer          -, -
    svamp           train, test   ChilleD/SVAMP                     Body + Question     Answer          -, Type

Source: the canonical form follows the conventions of MATH's own grader (arXiv 2103.03874) and Minerva's (arXiv 2206.14858).
Deviations:
    1. Omni-MATH's list of rule-gradable problems is not on the hub: from there, a row counts as such if its answer is
       one canonical string of at most 60 characters without prose. OlympiadBench: likewise, and one answer only.
    2. Units: see `canonical`. Percent and degree signs and currencies are dropped, never converted: 50% is 50, not 0.5.
"""

import collections
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2s_jax.tasks import grading, rows
from w2s_jax.tasks.grading import Grader
from w2s_jax.tasks.rows import Hub
from w2s_jax.types import Gold, Question

VERSION = "1"
MAX_CHARS = 500  # what is longer is no final answer
MAX_GRADABLE_CHARS = 60


class Row(NamedTuple):
    """One row of a data set, whatever its origin; `answer` is canonical, None where it is not public."""

    id: str
    problem: str
    answer: str | None
    solution: str = ""
    level: str = ""
    subject: str = ""


# ---- Final answers ---------------------------------------------------------------------------------------------------

_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ",
     "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "°": "", "½": " 1/2", "¼": " 1/4",
     "¾": " 3/4", "²": "^2", "³": "^3", "€": "", "£": "", "\u200b": ""}
)  # fmt: skip
_WORDS = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|hbox|operatorname|rm)\s*\{([^{}]*)\}"
_UNIT = re.compile(rf"(?:\s*/?\s*{_WORDS}(?:\s*\^\s*\{{?\s*-?[0-9]\s*\}}?)?\.?)+$")
_WORDS = re.compile(_WORDS)
_PLAIN_UNIT = re.compile(
    r"(-?\s?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?)\s+(?!(?:pi|sqrt|times|or|and|mod|a\.?m|p\.?m)\b)[A-Za-z]{2}[A-Za-z .]*"
)
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_DECIMAL = re.compile(r"(-?)([0-9]*)(?:\.([0-9]*))?")
_FRACTION = re.compile(r"(-?)(?:\\frac\{(-?)([0-9]+)\}\{(-?)([0-9]+)\}|([0-9]+)/([0-9]+))")
_NAME = re.compile(r"\\?[A-Za-z]{1,2}(?:_\{?[A-Za-z0-9]\}?)?\s*=(?!=)\s*")
_BRACE = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])-\s?\$?)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+(?![0-9.]))?"
)
_ANSWER_IS = re.compile(r"(?i)answer(?:\s+is|\s*:|\s*=)[\s:*]*")
_BARE_BOX = re.compile(r"\\boxed\s*([^\s{}$\\]+)")  # \boxed 7
_MATHS = re.compile(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def canonical(answer: str) -> str:
    r"""The canonical form of a final answer, "" if it has none; total, never raises.

    Layout goes ($, \left, \displaystyle, spaces, a closing point, thousands separators, "x =" before a value), spellings
    are made one (\dfrac and \frac12, 1/2 for \frac{1}{2}, 5 for 5.0 and 05), what is the same only by calculation is left
    to the grader (1/2 and 0.5). Units: words after a number or formula are its unit and go, also currency, percent
    and degree signs; words alone are the answer (in lower case). So 5 cm is 5 m: the problem asks for a unit, as a rule.

    >>> canonical(r"$\dfrac12\text{ cm}^2$."), canonical("12,000 dollars"), canonical(r"x = \left( 3, -0.50 \right)")
    ('1/2', '12000', '(3,-0.50)')
    """
    if not isinstance(answer, str) or len(answer) > MAX_CHARS:
        return ""
    for _ in range(8):  # what one round uncovers, the next one sees
        before, answer = answer, _tidied(answer)
        if answer == before:
            break
    return answer if any(map(str.isalnum, answer)) else ""


def _tidied(s: str) -> str:
    s = s.replace("\frac", r"\frac")  # what an unescaped backslash becomes on its way through JSON
    s = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in s.translate(_SIGNS))
    s = " ".join(s.split())
    s = re.sub(r"\\(?:boxed|fbox)(?![A-Za-z])(?:\s*\{\s*\})?", "", _last_box(s) or s)
    s += "}" * (len(re.findall(r"(?<!\\)\{", s)) - len(re.findall(r"(?<!\\)\}", s)))  # as where a source was cut
    s = re.sub(r"\\[$%]|[$%]|\^\s*\{?\s*\\circ\s*\}?|\\(?:displaystyle|limits|quad|qquad)(?![A-Za-z])", "", s)
    s = re.sub(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?", "", s)
    s = s.replace("{,}", ",").replace(r"\!", "")
    s = re.sub(r"\\[()\[\]]", "", s) if not s.startswith(r"\{") else s
    s = re.sub(r"(?<!\\)\\[ ,;:]|~", " ", s)
    s = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", s)
    s = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", s)
    s = re.sub(r"\\frac\s*([0-9a-z])\s*\{", r"\\frac{\1}{", s)
    s = re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9a-z])", r"\1{\2}", s)
    s = re.sub(r"\\sqrt\s*([0-9a-z])(?![0-9a-z])", r"\\sqrt{\1}", s)
    unit = _UNIT.search(s)
    if unit and re.search(r"[0-9\\}]", s[: unit.start()]) and not re.search(r"(?i)\b[ap]\.?m\b", unit[0]):
        s = s[: unit.start()]
    s = _WORDS.sub(r" \1 ", s).strip().rstrip(".,;:").strip()
    listed = re.sub(r"(?:\s*,)?\s*\b(?:and|or)\b\s*", ",", s)
    s = s if _prose(listed) else listed.strip(",")
    s = _NAME.sub("", s, count=1) if _NAME.match(s) and s.count("=") == 1 else s
    plain_unit = _PLAIN_UNIT.fullmatch(s)
    s = plain_unit[1] if plain_unit else s
    s = s.replace(",", "") if _THOUSANDS.fullmatch(s) else s
    if re.fullmatch(r"\(\s*[A-Za-z]\s*\)", s):
        s = s.strip("() ")
    if not re.search(r"[\\0-9+*/^=<>{}()|]", s):
        s = " ".join(s.split())
        return s.casefold() if re.search(r"[^\W\d_]{3}", s) else s
    if _prose(s):
        return " ".join(s.split())
    s = re.sub(r"([\^_])\s*([0-9A-Za-z])\s+(?=[0-9])", r"\1{\2}", s)  # \sin^2 80
    s = re.sub(r"^(-?[0-9]+) ([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}", s)  # 2 1/2
    s = re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", "\\1\0", s)  # a command ends where a letter would go on
    if re.fullmatch("[-0-9,. ]+", s):
        s = re.sub(r", (?=[0-9]{3}(?![0-9]))", ",\0", s)  # a list: without the space it would read as one number
    return _number("".join(s.split()).replace("\0", " "))


def _number(s: str) -> str:
    """One spelling of a whole number, a decimal or a fraction of whole numbers; other strings as they are."""
    s = s[1:] if re.fullmatch(r"\+[0-9.]+", s) else s
    if (found := _DECIMAL.fullmatch(s)) and (found[2] or found[3]):
        whole, part = found[2].lstrip("0") or "0", (found[3] or "").rstrip("0")
        value = f"{whole}.{part}" if part else whole
        return value if value == "0" else found[1] + value
    if found := _FRACTION.fullmatch(s):
        over, under = (found[n].lstrip("0") or "0" for n in ((3, 5) if found[3] else (6, 7)))
        minus = sum(bool(found[n]) for n in (1, 2, 4)) % 2
        return f"{'-' * minus}{over}/{under}"
    return s


def extract(text: str) -> str:
    r"""The canonical final answer in a text, "" if there is none; total, never raises.

    In this order: the last complete \boxed{...}; what follows the last "####"; what follows the last "answer is" or
    "answer:"; a text of one line without prose is itself an answer, or ends in one after "="; the last number; a text of at
    most three words. A text ends where a model that was shown examples goes on to a question of its own.

    >>> extract(r"So $\boxed{\frac{3}{4}}$, not 5."), extract("The answer is 18 dollars."), extract("?")
    ('3/4', '18', '')
    """
    found = written(text) if isinstance(text, str) else None
    return canonical(text[slice(*found)]) if found else ""


def written(text: str) -> tuple[int, int] | None:
    r"""Where a text says the answer that `extract` finds in it: first character, and behind the last; None where it has none.

    >>> text = r"So $\boxed{\dfrac34}$, not 5."
    >>> text[slice(*written(text))]
    '\\dfrac34'
    """
    after = re.search(r"\n[ \t]*(?:Question|Problem):", text)
    text = text[: after.start()] if after else text
    for found in (_boxed(text), _marked(text)):
        if found and canonical(text[slice(*found)]):
            return found
    if (said := _last(_ANSWER_IS, text)) and (found := _in_phrase(text[said.end() :])):
        found = said.end() + found[0], said.end() + found[1]
        if canonical(text[slice(*found)]):
            return found
    start, end = _stripped(text, 0, len(text))
    line = text[start:end]
    if line and "\n" not in line and len(line) <= MAX_CHARS and not _prose(line):
        sum, _, _ = line.rpartition("=")
        return (start, end) if re.search("[A-Za-z]", sum) or "=" not in line else (start + len(sum) + 1, end)
    if (number := _last(_NUMBER, text)) and canonical(number[0]):
        return number.span()
    return (start, end) if len(text.split()) <= 3 else None


def _last_box(text: str) -> str:
    """What the box that closes last holds, "" if none closes; boxes in it are opened too."""
    found = _boxed(text)
    return text[slice(*found)] if found else ""


def _boxed(text: str) -> tuple[int, int] | None:
    """Where the box that closes last holds something."""
    opened: list[tuple[bool, int]] = []
    last = None
    for found in _BRACE.finditer(text):
        if found[1] or found[2] == "{":
            opened.append((bool(found[1]), found.end()))
        elif found[2] and opened:
            boxed, start = opened.pop()
            if boxed and text[start : found.start()].strip():
                last = _stripped(text, start, found.start())
    if not last and (bare := _last(_BARE_BOX, text)):
        last = bare.span(1)
    return last


def _marked(text: str) -> tuple[int, int] | None:
    """The line behind the last "####"."""
    if "####" not in text:
        return None
    start, end = _stripped(text, text.rindex("####") + 4, len(text))
    return start, start + len(text[start:end].partition("\n")[0])


def _in_phrase(phrase: str) -> tuple[int, int] | None:
    """Where the answer is in what follows "the answer is"."""
    phrase = phrase[:MAX_CHARS]
    start = len(phrase) - len(phrase.lstrip())
    if found := _MATHS.match(phrase, start):
        return next(found.span(n) for n in (1, 2, 3) if found[n])
    ended = re.compile(r"\.(?:\s|$)|\n").search(phrase, start)
    start, end = _stripped(phrase, start, ended.start() if ended else len(phrase), " *")
    said = phrase[start:end]
    if not _prose(_PLAIN_UNIT.sub(r"\1", said)):
        return start, end
    if (number := _last(_NUMBER, said)) and canonical(number[0]):
        return start + number.start(), start + number.end()
    return (start, end) if len(said.split()) <= 3 else None


def _stripped(text: str, start: int, end: int, characters: str | None = None) -> tuple[int, int]:
    """The part of a text from `start` to `end` without those characters (spaces) at its ends."""
    part = text[start:end]
    start += len(part) - len(part.lstrip(characters))
    return start, start + len(part.strip(characters))


def _prose(text: str) -> bool:
    """Whether a text has words: three letters in a row outside of LaTeX commands and their words."""
    bare = re.sub(r"\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+", " ", _WORDS.sub(" ", text))
    return bool(re.search(r"(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|gcd|lcm|max|min|inf)\b)\b[^\W\d_]{3}", bare))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(collections.deque(pattern.finditer(text), maxlen=1)), None)


def worked(solution: str, final: str) -> str:
    r"""A reference solution as a demonstration shows it: without calculator notes, its answer in a box.

    >>> worked("2*3=<<2*3=6>>6 cups\n#### 6", "6")
    '2*3=6 cups\nThe final answer is \\boxed{6}.'
    """
    solution = re.sub(r"<<[^<>]*>>", "", solution).partition("####")[0].strip()
    if extract(_last_box(solution) and solution) == final:
        return solution
    return f"{solution}\nThe final answer is \\boxed{{{final}}}.".lstrip()


# ---- Data sets -------------------------------------------------------------------------------------------------------


def _gsm8k(row, place):
    solution, _, answer = row["answer"].rpartition("####")
    return Row(f"gsm8k/{place}", row["question"], answer, solution)


def _math(row, place):
    level = row["level"].removeprefix("Level ")
    return Row(f"math/{place}", row["problem"], _last_box(row["solution"]), row["solution"], level, row["type"])


def _math500(row, place):
    return Row(f"math500/{place}", row["problem"], row["answer"], row["solution"], str(row["level"]), row["subject"])


def _aime_to_2021(row, place):
    if int(row["Year"]) > 2021:
        return None
    return Row(f"aime/{row['ID']}", row["Question"], str(row["Answer"]), subject=f"AIME {row['Year']}")


def _aime_2022_to_2024(row, place):
    return Row(f"aime/2022-2024/{row['id']}", row["problem"], str(row["answer"]), row["solution"])


def _aime_2025(row, place):
    return Row(f"aime/2025/{row['id']}", row["problem"], str(row["answer"]))


def _amc(row, place):
    return Row(f"amc/{row['id']}", row["problem"], str(row["answer"]))


def _gradable(answer: str) -> bool:
    final = canonical(answer)
    return 0 < len(final) <= MAX_GRADABLE_CHARS and not _prose(answer)


def _omni_math(row, place):
    if not _gradable(row["answer"]):
        return None
    subject = row["domain"][0] if row["domain"] else ""
    return Row(f"omni_math_rule/{place}", row["problem"], row["answer"], row["solution"], str(row["difficulty"]), subject)


def _olympiadbench(row, place):
    if row["is_multiple_answer"] or len(row["final_answer"]) != 1 or not _gradable(row["final_answer"][0]):
        return None
    problem = f"{row['context']}\n{row['question']}" if row["context"] else row["question"]
    solution = row["solution"][0] if row["solution"] else ""
    return Row(f"olympiadbench/{row['id']}", problem, row["final_answer"][0], solution, "", row["subfield"])


def _minerva(row, place):
    return Row(f"minerva_math/{place}", row["question"], row["answer"])


def _svamp(row, place):
    body = row["Body"].strip()
    return Row(f"svamp/{row['ID']}", f"{body} {row['Question'].strip()}", str(row["Answer"]), "", "", row["Type"])


_MATH = Hub("DigitalLearningGmbH/MATH-lighteval", None, _math)
_SVAMP = Hub("ChilleD/SVAMP", None, _svamp)
_GSM8K = Hub("openai/gsm8k", "main", _gsm8k)
HUB: dict[str, dict[str, tuple[Hub, ...]]] = {
    "gsm8k": {"train": (_GSM8K,), "test": (_GSM8K,)},
    "math": {"train": (_MATH,), "test": (_MATH,)},
    "math500": {"test": (Hub("HuggingFaceH4/MATH-500", None, _math500),)},
    "aime": {
        "train": (Hub("di-zhang-fdu/AIME_1983_2024", None, _aime_to_2021),),
        "test": (
            Hub("AI-MO/aimo-validation-aime", None, _aime_2022_to_2024, split="train"),
            Hub("math-ai/aime25", None, _aime_2025),
        ),
    },
    "amc": {"test": (Hub("AI-MO/aimo-validation-amc", None, _amc, split="train"),)},
    "omni_math_rule": {"test": (Hub("KbsdJames/Omni-MATH", None, _omni_math),)},
    "olympiadbench": {"test": (Hub("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", _olympiadbench, split="train"),)},
    "minerva_math": {"test": (Hub("math-ai/minervamath", None, _minerva),)},
    "svamp": {"train": (_SVAMP,), "test": (_SVAMP,)},
}


def _parts(dataset: str, split: str) -> tuple[Hub, ...]:
    if split not in HUB[dataset]:
        raise ValueError(
            f"{dataset}:{split} is not on the hub, its splits there are {', '.join(HUB[dataset])}; change --config.tasks"
        )
    return HUB[dataset][split]


def _read(found: Mapping[str, Any], where: str) -> Row:
    """Reads an object of a local file; types are checked here, contents in `_problem`."""
    answer = found.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"{where}: field 'answer' is {answer!r}, allowed is text, or null where it is not known")
    id, problem = rows.text_field(found, "id", where), rows.text_field(found, "problem", where)
    about = (rows.text_field(found, name, where, "") for name in ("solution", "level", "subject"))
    return Row(id, problem, answer, *about)


def _tidy(dataset: str, row: Row) -> Row:
    """Strips outer spaces and makes the answer canonical. The hub leaves None where a text is missing."""
    answer = None if row.answer is None else canonical(row.answer)
    return Row(row.id, (row.problem or "").strip(), answer, row.solution or "", row.level or "", row.subject or "")


def _problem(row: Row) -> str:
    """Says why a row cannot be asked, "" if it can."""
    if not row.id or not row.problem:
        return f"id {row.id!r} and problem {row.problem[:80]!r} must not be empty"
    if row.answer == "":
        return f"the answer is empty, or longer than {MAX_CHARS} characters; null where it is not known"
    return ""


def _spared(row: Row) -> str:
    return ""


def _asks(row: Row) -> tuple[str, frozenset[str]]:
    return rows.plain(row.problem), frozenset()


DOMAIN = rows.Domain(
    module=__name__,
    folder="quantitative_reasoning",
    hub={name: functools.partial(_parts, name) for name in HUB},
    fields=("id", "problem", "solution", "answer", "level", "subject"),
    read=_read,
    tidy=_tidy,
    problem=_problem,
    spared=_spared,
    asks=_asks,
    views={"math500": ("math", lambda found: found.get("math500") is True)},
)


class Math(rows.Roles):
    """A task of mathematics problems; see `make`."""

    interface = "free"

    def __init__(self, questions, gold, files, grader: Grader):
        super().__init__(questions, gold, files)
        self.grader = grader

    def extract(self, text: str) -> str:
        """See `extract`."""
        return extract(text)

    def written(self, text: str) -> tuple[int, int] | None:
        """See `written`."""
        return written(text)

    def agree(self, found: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
        """bool[R]: which canonical answers are the same; see `grading`."""
        return self.grader.agree(found, wanted)

    def judged_by(self) -> dict[str, str]:
        """The packages that `agree` goes by, and their versions."""
        return grading.versions()

    def graded(self) -> str:
        """What became of the pairs that were graded in this process."""
        return str(self.grader.counts)


def make(
    *,
    root: str = "",
    source: Sequence[str] = ("math:train",),
    target: Sequence[str] = ("aime:train",),
    test: Sequence[str] = ("aime:test",),
    max_source: int | None = None,
    max_target: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
) -> Math:
    """Reads the questions of all three roles.

    Args:
        root: folder with local files, "" = the hub.
        source, target, test: "dataset:split" entries of each role; a role may be empty.
        max_source, max_target, max_test: keep at most this many questions of a role, see `rows.load`.
        seed: key of the subsets; it does not change the order of questions.

    Raises:
        ValueError: unknown data set or split, missing file, unreadable row (with file and line), no row left, a role that is
            labelled in part only, an unlabelled source or test.
    """
    entries = {"test": test, "source": source, "target": target}
    caps = {"test": max_test, "source": max_source, "target": max_target}
    loaded, files = rows.load(DOMAIN, entries, root, caps, seed)
    grader = Grader()
    questions, gold = {}, {}
    for role, items in loaded.items():
        found = [row for _, row, _ in items]
        questions[role] = tuple(
            Question(row.id, dataset, row.problem, meta={"level": row.level, "subject": row.subject})
            for dataset, row, _ in items
        )
        gold[role] = (
            Gold(
                tuple(row.id for row in found),
                tuple((row.answer,) for row in found),
                text=tuple(worked(row.solution, row.answer) for row in found),
                agree=grader.agree,
            )
            if rows.labelled(items)
            else None
        )
    return Math(questions, gold, files, grader)
