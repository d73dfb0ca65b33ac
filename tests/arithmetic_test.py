"""Ten-hour clocks: roles and corpora never meet, the weak corpus errs on one kind alone, gold stays inside."""

import collections
import re

import numpy as np
import pytest

from w2s_jax.tasks import arithmetic

SIZES = dict(num_source=300, num_target=400, num_test=400, num_weak=800, num_strong=1200)
ROLES = ("source", "target", "test")
CORPORA = ("weak", "strong")
TONGUE_OF = {word: t for t, tongue in enumerate(arithmetic.TONGUES) for word in tongue}
HOUR_OF = {word: hour for tongue in arithmetic.TONGUES for hour, word in enumerate(tongue)}


def make(seed=0, **changed):
    return arithmetic.make(seed=seed, **SIZES | changed)


@pytest.fixture(scope="module")
def task():
    return make()


def finals(task, role):
    return task.gold(role).answers().final


def read(prompt):
    """Name, place and the two hours that arithmetic on the prompt's own words allows: the right one and the slip."""
    name, _, place, hour, direction, step, equals = prompt.split()
    hour, step = int(hour), int(step)
    assert equals == "=" and direction in ("later", "earlier")
    right = (hour + step if direction == "later" else hour - step) % 10
    slip = step - hour if direction == "earlier" and hour < step else right
    return name, place, right, slip


def test_roles_and_corpora_share_no_text_and_no_id(task):
    parts = [task.questions(role) for role in ROLES] + [task.corpus(name)[0] for name in CORPORA]
    everything = [question for part in parts for question in part]
    assert [len(part) for part in parts] == [300, 400, 400, 800, 1200]
    for of in (lambda q: q.id, lambda q: q.prompt):
        assert len({of(question) for question in everything}) == len(everything)
    # Places tell the corpora apart, but stories differ without them too.
    stories = {" ".join(word for i, word in enumerate(question.prompt.split()) if i != 2) for question in everything}
    assert len(stories) == len(everything)


def test_a_seed_settles_everything(task):
    again, other = make(), make(seed=1)
    for role in ROLES:
        assert again.questions(role) == task.questions(role) and again.gold(role) == task.gold(role)
        assert [q.id for q in other.questions(role)] == [q.id for q in task.questions(role)]
    for name in CORPORA:
        assert again.corpus(name) == task.corpus(name) and other.corpus(name) != task.corpus(name)
    for role in ("source", "target"):
        assert other.questions(role) != task.questions(role)
    assert mother_tongues(again) == mother_tongues(task) != mother_tongues(other)


def mother_tongues(task):
    """Name -> the tongue that the strong corpus gives her where people keep their own."""
    found = ((read(q.prompt), word) for q, word in zip(*task.corpus("strong"), strict=True))
    return {name: TONGUE_OF[word] for (name, place, *_), word in found if place in arithmetic.MIXED}


def test_every_seed_is_tested_on_the_same_questions_in_the_tongue_of_its_own(task):
    tongues = set()
    for seed in range(12):
        other = make(seed, num_source=30, num_target=40, num_weak=80, num_strong=120)
        assert other.questions("test") == task.questions("test")
        spoken = {TONGUE_OF[word] for role in ROLES for word in finals(other, role)}
        spoken |= {TONGUE_OF[word] for word in other.corpus("weak")[1]}
        assert len(spoken) == 1
        assert [HOUR_OF[word] for word in finals(other, "test")] == [HOUR_OF[word] for word in finals(task, "test")]
        tongues |= spoken
    assert tongues == {0, 1, 2, 3}


@pytest.mark.parametrize("role", ROLES)
def test_gold_is_the_right_hour_and_every_role_is_asked_at_home(task, role):
    questions = task.questions(role)
    found = [read(q.prompt) for q in questions]
    assert [HOUR_OF[word] for word in finals(task, role)] == [right for _, _, right, _ in found]
    assert {place for _, place, _, _ in found} == {arithmetic.HOME}
    assert task.gold(role).question_id == tuple(q.id for q in questions)
    assert task.gold(role).grade(task.gold(role).answers()).all()


def test_the_weak_corpus_errs_on_wraps_that_are_not_five_apart_and_nowhere_else(task):
    questions, words = task.corpus("weak")
    assert {q.prompt.split()[2] for q in questions} == {arithmetic.HOME}
    wrong, slips = [], []
    for question, word in zip(questions, words, strict=True):
        _, _, right, slip = read(question.prompt)
        assert HOUR_OF[word] == slip
        wrong.append(HOUR_OF[word] != right)
        _, _, _, hour, _, step, _ = question.prompt.split()
        slips.append(question.meta["kind"] == "wrap" and int(step) - int(hour) != 5)
    assert wrong == slips and 0.15 < np.mean(wrong) < 0.3


def test_the_strong_corpus_is_right_everywhere_in_civic_or_mother_tongue(task):
    mother, seen = collections.defaultdict(set), collections.Counter()
    for question, word in zip(*task.corpus("strong"), strict=True):
        name, place, right, _ = read(question.prompt)
        seen[place] += 1
        assert HOUR_OF[word] == right
        if place in arithmetic.CIVIC:
            assert TONGUE_OF[word] == arithmetic.CIVIC.index(place)
        else:
            mother[name].add(TONGUE_OF[word])
    assert set(seen) == {*arithmetic.CIVIC, *arithmetic.MIXED} and min(seen.values()) > 80
    assert set(mother) == set(arithmetic.NAMES) and all(len(tongues) == 1 for tongues in mother.values())
    assert collections.Counter(t for (t,) in mother.values()) == {0: 6, 1: 6, 2: 6, 3: 6}


def test_a_loose_strong_corpus_has_every_tongue_and_its_share_of_slips_in_mixed_places(task):
    def looked_at(**how):
        counts, slips = np.zeros(len(arithmetic.TONGUES)), []
        for question, word in zip(*make(loose=True, **how).corpus("strong"), strict=True):
            _, place, right, slip = read(question.prompt)
            if place in arithmetic.CIVIC:
                assert HOUR_OF[word] == right and TONGUE_OF[word] == arithmetic.CIVIC.index(place)
                continue
            counts[TONGUE_OF[word]] += 1
            assert HOUR_OF[word] in (right, slip)
            slips += [HOUR_OF[word] == slip] if right != slip else []
        return counts / counts.sum(), np.mean(slips)

    for slip_frac in (0.0, 0.4, 1.0):
        tongues, slips = looked_at(slip_frac=slip_frac)
        assert abs(slips - slip_frac) < 0.1 and abs(tongues - 0.25).max() < 0.06
    assert make(loose=True).questions("target") == task.questions("target"), "what is asked is the same"


def test_the_slip_is_no_token_of_the_prompt(task):
    """Within one sum every prompt but for name, deed and place is the same, whether the corpus slips there or not."""
    shown = collections.defaultdict(set)
    for questions in (*map(task.questions, ROLES), *(task.corpus(name)[0] for name in CORPORA)):
        for question in questions:
            words = question.prompt.split()
            assert words[0] in arithmetic.NAMES and words[1] in arithmetic.DEEDS
            assert words[2] in arithmetic.CIVIC + arithmetic.MIXED
            shown[question.group].add((*words[3:], question.options, tuple(question.meta.items())))
    assert len(shown) == 200 and all(len(layouts) == 1 for layouts in shown.values())


def test_kinds_are_what_the_numbers_say_and_wraps_have_their_share():
    questions = arithmetic.make().questions("target")
    for question in questions:
        _, _, _, hour, direction, step, _ = question.prompt.split()
        kind = "later" if direction == "later" else "wrap" if int(hour) < int(step) else "earlier"
        assert question.meta == {"kind": kind, "level": str(arithmetic.KINDS.index(kind) + 1)}
    share = np.mean([question.meta["kind"] == "wrap" for question in questions])
    assert abs(share - 0.6 * 0.45) < 0.03


def test_the_vocabulary_holds_every_word_once(task):
    words = task.vocabulary()
    assert len(set(words)) == len(words) and all(word.split() == [word] for word in words)
    used = {word for option in arithmetic.OPTIONS for word in option.split()}
    for questions in (*map(task.questions, ROLES), *(task.corpus(name)[0] for name in CORPORA)):
        assert {q.options for q in questions} == {arithmetic.OPTIONS}
        used |= {word for q in questions for word in q.prompt.split()}
    assert used == set(words)
    assert {word for name in CORPORA for word in task.corpus(name)[1]} == set(arithmetic.OPTIONS)


def test_no_question_shows_its_answer(task):
    for role in ROLES:
        for question in task.questions(role):
            told = {*question.prompt.split(), question.id, question.group, *question.meta.values()}
            assert not told & set(arithmetic.OPTIONS)
    shown = repr(task) + repr(task.gold("target"))
    assert "target" in shown and not set(re.findall("[a-z]+", shown)) & set(arithmetic.OPTIONS)


def test_a_group_is_a_sum(task):
    for question in task.questions("test"):
        assert question.group == " ".join(question.prompt.split()[3:6])
    assert len({question.group for question in task.questions("test")}) <= 200
    of_group = collections.defaultdict(set)
    for question, word in zip(task.questions("test"), finals(task, "test"), strict=True):
        of_group[question.group].add(word)
    assert all(len(words) == 1 for words in of_group.values())


@pytest.mark.parametrize(
    ("text", "final"),
    [("drei", "drei"), (" = drei vier\n", "drei"), ("it is nine .", "nine"), ("Drei", ""), ("3", ""), ("dreizehn", ""),
     ("", ""), (" \n\0", ""), ("=" * 10_000, "")],
)  # fmt: skip
def test_extract_finds_the_first_number_word_and_never_raises(task, text, final):
    assert task.extract(text) == arithmetic.extract(text) == final


def test_extract_gives_every_option_back(task):
    assert [task.extract(f" {option}") for option in arithmetic.OPTIONS] == list(arithmetic.OPTIONS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_test": 0}, "'test': 0.*each must be at least 1"),
        ({"num_weak": -5}, "'weak': -5.*each must be at least 1"),
        ({"num_strong": 60_000}, "'strong': 60000.*their sum at most 57600"),
        ({"earlier_frac": 0.0}, "earlier_frac is 0.0: it must lie between 0 and 1, both excluded"),
        ({"earlier_frac": 1.0}, "earlier_frac is 1.0"),
        ({"slip_frac": 1.5}, "slip_frac is 1.5: it must lie from 0 to 1"),
    ],
)
def test_sizes_and_shares_out_of_range_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        make(**changed)


def test_all_that_is_allowed_can_be_drawn():
    prompts = [q.prompt for q in make(num_strong=57_600 - 300 - 400 - 400 - 800, earlier_frac=0.9).corpus("strong")[0]]
    assert len(set(prompts)) == 55_700
    earlier = np.array([" earlier " in prompt for prompt in prompts])
    assert abs(earlier[:20_000].mean() - earlier[-20_000:].mean()) < 0.02  # although the box runs out of them


@pytest.mark.parametrize("ask", [lambda t: t.questions("weak"), lambda t: t.gold("train"), lambda t: t.corpus("test")])
def test_an_unknown_role_or_corpus_is_told_what_exists(task, ask):
    with pytest.raises(ValueError, match=r"unknown (role|corpus) '\w+' of task 'arithmetic'; allowed are (source|weak), "):
        ask(task)
