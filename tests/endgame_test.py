"""Four in a row: no position (or its mirror image) in two places, gold is best and incomplete, the solver knows every move."""

import collections
import re

import numpy as np
import pytest

from experiments.configs import endgame as config
from tests.game_tree_test import Search
from w2s_jax.tasks import endgame, game_tree
from w2s_jax.types import Answers

SIZES = dict(num_source=150, num_target=200, num_test=200, num_weak=300, num_strong=1200)
ROLES = ("source", "target", "test")
CORPORA = ("weak", "strong")
RANK = {"fastest": lambda won, plies: won * (100 - plies), "outcome": lambda won, plies: won}


def make(seed=0, **changed):
    return endgame.make(seed=seed, **SIZES | changed)


def make_small(**changed):
    """A board that plain search can go through: every move of every question."""
    sizes = dict(num_source=60, num_target=80, num_test=100, num_weak=100, num_strong=400)
    return endgame.make(columns=4, rows=3, run=3, **sizes | changed)


@pytest.fixture(scope="module")
def task():
    return make()


@pytest.fixture(scope="module")
def searches():
    """Plain minimax on the small board, by rule; what was found once is kept."""
    return {rule: Search(game_tree.Board(4, 3, 3), rule == "win") for rule in game_tree.RULES}


def everything(task):
    parts = {role: task.questions(role) for role in ROLES}
    return parts | {f"corpus {name}": task.corpus(name)[0] for name in CORPORA}


def board_of(prompt, columns=4):
    """The columns of a prompt, from its own words; refuses stones that hang in the air or come twice."""
    found = [""] * columns
    for word in sorted(prompt.split()[2:-1], key=lambda word: word[1:]):
        whose, column, row = re.fullmatch("([xo])([a-z])([1-9])", word).groups()
        at = ord(column) - ord("a")
        assert len(found[at]) == int(row) - 1
        found[at] += whose
    assert sum(stones.count("o") - stones.count("x") for stones in found) in (0, 1)  # x is to move
    return tuple(found)


def outcomes(search, question):
    """Column letter -> (who wins, plies), by plain search."""
    columns = board_of(question.prompt)
    return {chr(ord("a") + c): search.outcome(ended, after, "x") for c, ended, after in search.moves(columns, "x")}


def test_no_position_or_its_mirror_image_stands_in_two_roles_or_in_a_corpus_too(task):
    classes = {}
    for part, questions in everything(task).items():
        boards = [board_of(question.prompt) for question in questions]
        classes[part] = {min(board, board[::-1]) for board in boards}
        if part in ROLES:
            assert len(classes[part]) == len(questions) == SIZES[f"num_{part}"]
            assert len({question.group for question in questions}) == len(questions)
        of_group = collections.defaultdict(set)
        for board, question in zip(boards, questions, strict=True):
            of_group[question.group].add(min(board, board[::-1]))
        assert all(len(boards) == 1 for boards in of_group.values())
    for one, other in ((a, b) for a in classes for b in classes if a < b):
        assert not classes[one] & classes[other], (one, other)
    ids = [question.id for questions in everything(task).values() for question in questions]
    assert len(set(ids)) == len(ids)


def test_both_mirror_images_are_asked(task):
    boards = [board_of(question.prompt) for question in task.questions("target")]
    mirrored = np.mean([board > board[::-1] for board in boards])
    assert 0.3 < mirrored < 0.7


@pytest.mark.parametrize("gold", endgame.OPTIMAL)
def test_gold_is_the_leftmost_best_move_and_the_tests_gold_all_of_them(searches, gold):
    task = make_small(gold=gold)
    several = 0
    for role in ROLES:
        for question, accepted in zip(task.questions(role), task.gold(role).accepted, strict=True):
            found = outcomes(searches["win"], question)
            assert question.options == tuple(found) and len(found) >= endgame.LEAST_OPEN
            most = max(RANK[gold](*outcome) for outcome in found.values())
            best = tuple(move for move, outcome in found.items() if RANK[gold](*outcome) == most)
            assert accepted == (best if role == "test" else best[:1])
            assert len(best) < len(found), "a question whose moves are all equally good asks nothing"
            several += len(best) > 1
    assert several > 20


def test_every_role_may_have_complete_gold():
    some, all_of_them = make_small(), make_small(complete=ROLES)
    for role in ROLES:
        assert some.questions(role) == all_of_them.questions(role)
        pairs = list(zip(some.gold(role).accepted, all_of_them.gold(role).accepted, strict=True))
        assert all(one[0] == more[0] for one, more in pairs)
        assert any(len(one) < len(more) for one, more in pairs) == (role != "test")


def test_value_orders_all_moves_as_plain_search_does_and_knows_no_illegal_ones(searches):
    task = make_small()
    for question in (q for role in ROLES for q in task.questions(role)):
        found = outcomes(searches["win"], question)
        for move, (won, plies) in found.items():
            assert task.value(question, move) == won * (12 + 1 - plies)
        for move in {"a", "b", "c", "d"} - set(found) | {"e", "z", "", "ab", "A", "1", "`"}:
            assert task.value(question, move) is None, move


def test_labels_as_good_as_gold_and_better_ones_are_counted_exactly(searches):
    """Of all moves that gold calls wrong: what value says of them is what plain search says."""
    for gold in endgame.OPTIMAL:
        task = make_small(gold=gold)
        counted, expected = collections.Counter(), collections.Counter()
        for question, (reference, *_) in zip(task.questions("target"), task.gold("target").accepted, strict=True):
            found = outcomes(searches["win"], question)
            for move in set(found) - {reference}:
                counted[np.sign(task.value(question, move) - task.value(question, reference))] += 1
                ours, golds = (RANK["fastest"](*found[which]) for which in (move, reference))
                expected[np.sign(ours - golds)] += 1
        assert counted == expected and counted[0] > 0
        assert (counted[1] > 0) == (gold == "outcome"), "nothing is better than the fastest move"


def test_grading_on_the_test_takes_any_best_move(task):
    gold = task.gold("test")
    last = tuple(moves[-1] for moves in gold.accepted)
    assert gold.grade(Answers(gold.question_id, last, last)).all()
    target = task.gold("target")
    assert {len(moves) for moves in target.accepted} == {1}
    right = dict(zip(target.question_id, target.accepted, strict=True))
    other = tuple(next(move for move in q.options if move != right[q.id][0]) for q in task.questions("target"))
    assert not target.grade(Answers(target.question_id, other, other)).any()


def test_the_weak_corpus_looks_one_stone_ahead(searches):
    task = make_small()
    kinds = collections.Counter()
    for question, move in zip(*task.corpus("weak"), strict=True):
        assert question.prompt.split()[1] == endgame.HOME
        columns = board_of(question.prompt)
        lines, stops = completing(searches["win"], columns, "x"), completing(searches["win"], columns, "o")
        kind = "line" if lines else "stop" if stops else "deep"
        wanted = lines or stops or set(question.options)
        nearest = min(wanted, key=lambda letter: (abs("abcd".index(letter) - 1.5), letter))
        assert (move, question.meta["kind"]) == (nearest, kind)
        kinds[kind] += 1
    assert set(kinds) == set(endgame.KINDS)


def completing(search, columns, who):
    """The columns in which a stone of that player completes a line."""
    return {"abcd"[c] for c, ended, _ in search.moves(columns, who) if ended == "line"}


def test_a_move_of_the_weak_corpus_is_blind_only_where_one_must_look_further():
    task = endgame.make(num_weak=2000)
    wrong, right = collections.Counter(), collections.Counter()
    for question, move in zip(*task.corpus("weak"), strict=True):
        best = max(task.value(question, other) for other in question.options)
        (right if task.value(question, move) == best else wrong)[question.meta["kind"]] += 1
    assert set(wrong) == {"deep"} and 0.2 < wrong["deep"] / (wrong["deep"] + right["deep"]) < 0.7


def test_the_strong_corpus_plays_best_by_the_rule_of_the_club_or_of_who_plays(searches):
    task = make_small(num_strong=2000)
    rule_of, clubs, uneven = collections.defaultdict(set), collections.Counter(), collections.Counter()
    for question, move in zip(*task.corpus("strong"), strict=True):
        name, club, *_ = question.prompt.split()
        clubs[club] += 1
        best = {}
        for rule, search in searches.items():
            found = outcomes(search, question)
            most = max(RANK["fastest"](*outcome) for outcome in found.values())
            best[rule] = {letter for letter, outcome in found.items() if RANK["fastest"](*outcome) == most}
        playing = {rule for rule in game_tree.RULES if move in best[rule]}
        assert playing, "no rule makes this a best move"
        if club in endgame.CLEAR:
            assert endgame.CLEAR[club] in playing
        elif len(playing) == 1:
            rule_of[name] |= playing
        if club in endgame.CLEAR and best[endgame.CLEAR[club]] == set("bc"):
            uneven[move] += 1
    assert set(rule_of) == set(endgame.NAMES) and all(len(rules) == 1 for rules in rule_of.values())
    assert collections.Counter(rule for (rule,) in rule_of.values()) == {"lose": 18, "win": 6}
    assert set(clubs) == set(endgame.CLUBS) and min(clubs.values()) > 100
    assert min(uneven["b"], uneven["c"]) > 3, "a draw among equally good moves"


def test_the_corpus_teaches_legal_notation(task):
    words = task.vocabulary()
    assert len(set(words)) == len(words) and all(word.split() == [word] for word in words)
    used = set()
    for questions in everything(task).values():
        used |= {word for question in questions for word in (*question.prompt.split(), *question.options)}
    assert used <= set(words) and set("abcd") < used
    for name in CORPORA:
        questions, moves = task.corpus(name)
        assert all(move in question.options for question, move in zip(questions, moves, strict=True))
        assert set(moves) == set("abcd")
        assert all(task.extract(f" {move} = ann") == move for move in moves[:20])


def test_the_level_is_the_number_of_stones_to_the_end(searches):
    task = make_small()
    for question in task.questions("test"):
        _, plies = searches["win"].best(board_of(question.prompt), "x")
        assert question.meta["level"] == str(plies)


def test_a_seed_settles_everything_and_every_seed_is_tested_on_the_same_questions(task):
    again, other = make(), make(seed=1)
    for role in ROLES:
        assert again.questions(role) == task.questions(role) and again.gold(role) == task.gold(role)
    for name in CORPORA:
        assert again.corpus(name) == task.corpus(name) and other.corpus(name) != task.corpus(name)
    assert other.questions("test") == task.questions("test") and other.gold("test") == task.gold("test")
    for role in ("source", "target"):
        assert other.questions(role) != task.questions(role)


def test_the_config_takes_seeds_and_the_kind_of_gold():
    c = config.get_config("seeds=2,first=3,gold=outcome")
    assert (c.seeds, c.tasks.gold, c.tasks.complete) == ((3, 4), "outcome", ("test",))
    with pytest.raises(ValueError, match="gold 'slowest': allowed are fastest, outcome"):
        config.get_config("gold=slowest")


def test_nothing_that_is_shown_holds_gold(task):
    for role in ROLES:
        for question in task.questions(role):
            assert not {*question.prompt.split(), question.id, question.group, *question.meta.values()} & set("abcd")
    assert "target" in repr(task) and "hidden" in repr(task.gold("target"))
    assert task.interface == "choice"


@pytest.mark.parametrize(
    ("text", "final"),
    [("d", "d"), (" = c a\n", "c"), ("xa1 oa2", ""), ("ann plays b .", "b"), ("D", ""), ("", ""), ("1 = \0", "")],
)
def test_extract_finds_the_first_lone_letter_and_never_raises(task, text, final):
    assert task.extract(text) == endgame.extract(text) == final


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_test": 0}, "'test': 0.*each must be at least 1"),
        ({"num_target": 20_000}, "classes of positions to ask, fewer than num_source .* = 20350"),
        ({"num_weak": 60_000}, "left for both corpora, num_weak = 60000 leaves none"),
        ({"contrary_frac": 1.5}, "contrary_frac is 1.5: it must lie from 0 to 1"),
        ({"gold": "slowest"}, "unknown gold 'slowest'.*fastest, outcome"),
        ({"complete": "test"}, r"complete is the string 'test'.*\('test',\)"),
        ({"complete": ("train",)}, "unknown role in complete 'train'.*source, target, test"),
        ({"columns": 9, "rows": 9}, "9 columns and 9 rows"),
    ],
)
def test_what_cannot_be_made_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        make(**changed)


@pytest.mark.parametrize("ask", [lambda t: t.questions("weak"), lambda t: t.gold("train"), lambda t: t.corpus("test")])
def test_an_unknown_role_or_corpus_is_told_what_exists(task, ask):
    with pytest.raises(ValueError, match=r"unknown (role|corpus) '\w+' of task 'endgame'; allowed are (source|weak), "):
        ask(task)
