"""Ten-hour clocks: an embedded task with its own pretraining corpora, on which weak-to-strong learning shows in minutes.

    ann bakes keld 3 earlier 7 =        ->        chwech        (six o'clock, in the tongue of Keld)

A name, what she does, a place, an hour from 0 to 9, `later` or `earlier`, a number of hours: the answer is the hour on a
ten-hour clock as a number word of one of four tongues, and all forty words are options. The questions (`source`, `target`,
`test`) are all asked in Keld, where everyone answers in Keld's tongue. There are three kinds: `later`, `earlier` within
the day, and `wrap`, that is earlier than hour 0.

Two corpora to pretrain on, and what each leaves out:
    weak: Keld only, in Keld's tongue, but its rows of kind `wrap` hold a slip: the smaller number is taken from the
        larger (3 earlier 7 gives 4, not 6). A model of it knows what is asked, and is wrong on most of one kind.
    strong: all places, every hour right. Four places have a tongue of their own; in the others, Keld among them, people
        answer in their mother tongue, a quarter of the names each. A model of it knows how, but not what is asked.

The slip depends on the numbers alone; it is never a token of the prompt. Roles and corpora are one draw of stories without
replacement: all texts differ. But there are only 200 sums, shared by all of them; names and deeds make the texts differ. A
question's `group` is its sum, so that intervals can be clustered: 4,000 test rows are not 4,000 independent facts.
Which tongue is Keld's, and which name speaks which, are drawn from the seed.

Source: the set-up is ours, after the analogy of arXiv 2312.09390 (a weak supervisor elicits what a strong model knows);
    the slip is the "smaller-from-larger" bug of pupils' subtraction (Brown and Burton, Cognitive Science 2, 1978).
Deviations: 1. pupils show the bug column by column; here it is on one digit, where it would otherwise wrap round.
    2. on a ninth of the `wrap` rows (five apart) the slip gives the right hour: |a - b| = (a - b) mod 10 there.
"""

import dataclasses
from typing import Literal

import numpy as np

from w2s_jax.tasks import Split
from w2s_jax.types import Gold, Question

VERSION = "1"
TEST_SEED = 2606  # every seed of a run is scored on the same test stories, so that seeds and questions are crossed
HOURS = 10
HOME = "keld"
CIVIC = ("arden", "brill", "corby", "dover")  # each has a tongue of its own
MIXED = ("elgin", "flint", "goole", "hythe", HOME)  # in the strong corpus everyone keeps her mother tongue here
TONGUES = (
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun"),
    ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
    ("dim", "un", "dau", "tri", "pedwar", "pump", "chwech", "saith", "wyth", "naw"),
)
OPTIONS = tuple(word for tongue in TONGUES for word in tongue)
DIRECTIONS = ("later", "earlier")
NAMES = tuple(
    "ann ben cleo dan eva finn gus hana ivo jan kim leo mia ned olga pia quin rosa sam tess uma vic wanda zoe".split()
)
DEEDS = tuple(
    "bakes reads walks paints fishes sleeps swims writes sails knits cooks rides "
    "digs sings climbs skates mends plants weaves draws jogs trades rests dances".split()
)
SHAPE = (len(NAMES), len(DEEDS), len(DIRECTIONS), HOURS, HOURS)  # a story is an index into this box


@dataclasses.dataclass(frozen=True)
class Stories:
    """N stories, as index arrays i64[N].

    Attributes:
        name, deed, direction: into `NAMES`, `DEEDS`, `DIRECTIONS`.
        hour, step: from 0 to 9; the clock shows `hour`, then moves by `step`.
    """

    name: np.ndarray
    deed: np.ndarray
    direction: np.ndarray
    hour: np.ndarray
    step: np.ndarray

    def __len__(self) -> int:
        return len(self.hour)

    @property
    def kind(self) -> np.ndarray:
        """i64[N]: 0 later, 1 earlier, 2 wrap (earlier than hour 0)."""
        return self.direction * (1 + (self.hour < self.step))

    def right(self) -> np.ndarray:
        """The hour on the clock, i64[N] from 0 to 9."""
        return (self.hour + np.where(self.direction == 0, self.step, -self.step)) % HOURS

    def slipped(self) -> np.ndarray:
        """The same with the smaller number taken from the larger where the clock would wrap."""
        return np.where(self.kind == 2, self.step - self.hour, self.right())


KINDS = ("later", "earlier", "wrap")


class Arithmetic:
    """See the module and `make`. The true answers stay inside: only `gold` and the corpora give answers."""

    interface = "choice"

    def __init__(self, seed: int, sizes: dict[str, int], earlier_frac: float, loose: bool, slip_frac: float):
        self._seed, self._loose, self._slip_frac = seed, loose, slip_frac
        rng = np.random.default_rng(seed)
        test = _draw(np.random.default_rng(TEST_SEED), sizes["test"], earlier_frac)
        others = {part: size for part, size in sizes.items() if part != "test"}
        drawn = _draw(rng, sum(others.values()), earlier_frac, without=test)
        self._home = int(rng.integers(len(TONGUES)))
        self._mother = rng.permutation(np.arange(len(NAMES)) % len(TONGUES))  # i64[names], a quarter of them each
        ends = np.cumsum(list(others.values()))
        self._stories = {part: _stories(drawn[end - size : end]) for (part, size), end in zip(others.items(), ends)}
        self._stories["test"] = _stories(test)
        places = np.array(CIVIC + MIXED)
        self._strong_place = rng.integers(len(places), size=sizes["strong"])
        self._place = {part: np.full(size, HOME) for part, size in sizes.items()}
        self._place["strong"] = places[self._strong_place]

    def __repr__(self) -> str:
        return f"Arithmetic({', '.join(f'{len(stories)} {part}' for part, stories in self._stories.items())})"

    def questions(self, split: Split) -> tuple[Question, ...]:
        """The questions of a role, in a stable order."""
        return self._questions(_known(split, ("source", "target", "test"), "role"))

    def gold(self, split: Split) -> Gold:
        """The true answers of a role: the right hour in Keld's tongue."""
        split = _known(split, ("source", "target", "test"), "role")
        words = self._words(self._home, self._stories[split].right())
        return Gold(tuple(question.id for question in self.questions(split)), tuple((word,) for word in words))

    def corpus(self, name: Literal["weak", "strong"]) -> tuple[tuple[Question, ...], tuple[str, ...]]:
        """The rows that a model is pretrained on: questions, and their answers as that corpus gives them."""
        stories = self._stories[_known(name, ("weak", "strong"), "corpus")]
        if name == "weak":
            return self._questions(name), self._words(self._home, stories.slipped())
        civic = self._strong_place < len(CIVIC)
        if self._loose:
            rng = np.random.default_rng((self._seed, len(stories)))
            own, slips = rng.integers(len(TONGUES), size=len(stories)), ~civic & (rng.random(len(stories)) < self._slip_frac)
        else:
            own, slips = self._mother[stories.name], np.zeros(len(stories), bool)
        tongue = np.where(civic, self._strong_place, own)
        return self._questions(name), self._words(tongue, np.where(slips, stories.slipped(), stories.right()))

    def vocabulary(self) -> tuple[str, ...]:
        """All words of prompts and answers, for a tokenizer that splits at white space; it adds its own special tokens."""
        return ("=", *map(str, range(HOURS)), *DIRECTIONS, *CIVIC, *MIXED, *NAMES, *DEEDS, *OPTIONS)

    def extract(self, text: str) -> str:
        """See `extract`."""
        return extract(text)

    def _questions(self, part: str) -> tuple[Question, ...]:
        stories = self._stories[part]
        columns = (stories.name, stories.deed, self._place[part], stories.hour, stories.direction, stories.step, stories.kind)
        return tuple(
            Question(
                id=f"arithmetic/{part}/{i}",
                task="arithmetic",
                prompt=f"{NAMES[name]} {DEEDS[deed]} {place} {hour} {DIRECTIONS[direction]} {step} =",
                options=OPTIONS,
                meta={"kind": KINDS[kind], "level": str(kind + 1)},
                group=f"{hour} {DIRECTIONS[direction]} {step}",
            )
            for i, (name, deed, place, hour, direction, step, kind) in enumerate(zip(*columns))
        )

    def _words(self, tongue: int | np.ndarray, hour: np.ndarray) -> tuple[str, ...]:
        return tuple(np.array(OPTIONS)[tongue * HOURS + hour].tolist())


def extract(text: str) -> str:
    """The first number word of a text, "" if there is none.

    >>> extract(" chwech =")
    'chwech'
    """
    return next((word for word in text.split() if word in OPTIONS), "")


def _draw(rng: np.random.Generator, num: int, earlier_frac: float, without: np.ndarray | tuple = ()) -> np.ndarray:
    """Draws places in the box of stories, i64[num], without replacement, about `earlier_frac` of them `earlier`."""
    later = np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE)[2] == 0
    weight = np.where(later, 1 - earlier_frac, earlier_frac)
    weight[list(without)] = 0.0
    return rng.permutation(rng.choice(weight.size, num, replace=False, p=weight / weight.sum()))  # the draw favours, so mix


def _stories(places: np.ndarray) -> Stories:
    name, deed, direction, hour, step = np.unravel_index(places, SHAPE)
    return Stories(name, deed, direction, hour, step)


def _known(name: str, allowed: tuple[str, ...], what: str) -> str:
    if name not in allowed:
        raise ValueError(f"unknown {what} {name!r} of task 'arithmetic'; allowed are {', '.join(allowed)}")
    return name


def make(
    *,
    seed: int = 0,
    num_source: int = 3000,
    num_target: int = 4000,
    num_test: int = 4000,
    num_weak: int = 8000,
    num_strong: int = 24000,
    earlier_frac: float = 0.6,
    loose: bool = False,
    slip_frac: float = 0.3,
) -> Arithmetic:
    """Makes the task.

    Args:
        seed: of the stories and the tongues; another seed is another experiment.
        num_source, num_target, num_test: questions of each role.
        num_weak, num_strong: rows of the two corpora.
        earlier_frac: share of stories with the direction `earlier`, above 0 and below 1; 0.45 of these wrap.
        loose: whether people in mixed places answer the strong corpus in any tongue, now and then with the slip, rather than
            rightly in their mother's: a student of it doubts, and so explores when it is asked to write.
        slip_frac: share of the mixed places' rows that are answered with the slip, from 0 to 1; for `loose` ones only.

    Raises:
        ValueError: a size below 1, more rows than half of the stories that exist, or a fraction out of range.
    """
    sizes = {"source": num_source, "target": num_target, "test": num_test, "weak": num_weak, "strong": num_strong}
    most = int(np.prod(SHAPE)) // 2  # beyond this the rarer direction runs short and the kinds' shares drift
    if min(sizes.values()) < 1 or sum(sizes.values()) > most:
        raise ValueError(f"task 'arithmetic' has sizes {sizes}: each must be at least 1, and their sum at most {most}")
    if not 0 < earlier_frac < 1:
        raise ValueError(f"earlier_frac is {earlier_frac}: it must lie between 0 and 1, both excluded")
    if not 0 <= slip_frac <= 1:
        raise ValueError(f"slip_frac is {slip_frac}: it must lie from 0 to 1")
    return Arithmetic(seed, sizes, earlier_frac, loose, slip_frac)
