"""Selective weak-to-strong: the student labels what it knows by itself; its view of the questions mends the other labels.

Command:  python -m experiments.main --config=experiments/configs/selective.py
          python -m experiments.main --config=experiments/configs/selective.py:seeds=5
          python -m experiments.main --config=experiments/configs/selective.py:multiple_choice \
              --config.teacher.model=DIR --config.student.model=DIR --config.tasks.root=DATA
Device:   a laptop's CPU, minutes, nothing downloaded; multiple_choice as its models ask, half a billion parameters in hours.

`planted` (the default) is the quickstart's world (`w2s_jax/tasks/arithmetic.py`), which lends itself: the teacher knows what
is asked and slips on one kind of question; the student, who does not know which tongue is asked for, answers in the mother
tongue of whoever the question is about. For a quarter of the names that is the right one: there it knows the answer by itself,
also where the teacher slips. All questions have the same forty options, so that the graph's points are questions.

`multiple_choice` asks questions with options of their own: points are (question, option) pairs, whose number the search for
neighbours is quadratic in.

P(IK), the graph and the route of a label follow arXiv 2511.14166 as far as it is known to us; head, thresholds, sizes and rates
are our proposals, and so is the world. The paper's sets are SciQ, BoolQ and CosmosQA: its numbers are not reproduced here.
"""

from experiments.configs import base, quickstart

METHODS = ("naive", "ntf", "self_known", "smoothed", "selective", "gold")


def get_config(arg=None):
    """`arg`: planted (the default) or multiple_choice; `seeds=K` runs seeds 0..K-1, `first=S` starts at S."""
    given = base.words(arg, variant="planted", seeds=1, first=0)
    c = base.choose("variant", given["variant"], {"planted": planted, "multiple_choice": multiple_choice})()
    c.name = "selective" if given["variant"] == "planted" else f"selective_{given['variant']}"
    c.seeds = tuple(range(given["first"], given["first"] + given["seeds"]))
    c.methods = METHODS
    return c


def planted():
    """The quickstart's world and models.

    Most questions are taught: with few, what a student knows and what the teacher is trusted with fill the lesson, and labels
    that are in doubt are left out, whatever became of them. The slip goes by the numbers, and the nearest questions ask about
    the same ones: only a wider neighbourhood holds others with the same answer (50, chosen by the labelled source of seed 0).
    """
    c = quickstart.get_config()
    c.select.n = 3500
    for word in ("smoothed", "selective"):
        c.relabel[word].update(nodes="question", neighbours=50)
    return c


def multiple_choice():
    """Models that are given on the command line, on few questions."""
    c = base.get_config()
    c.domain = "world knowledge"
    c.tasks.update(max_source=1200, max_target=1500, max_test=500)  # of the sets of world_knowledge.py
    for who in ("teacher", "student"):
        c[who].style = "cloze"  # models of less than a billion parameters are at chance with letters
        c[who].shape = base.shape(row_length=512, batch_rows=8, max_segments=16)
    c.student.training.shape = base.shape(row_length=512, batch_rows=2, max_segments=16)
    c.select.n = 500
    return c
