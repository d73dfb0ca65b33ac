"""Gains: what theory predicts of students beside what came of them, in finished runs and on the bench, in one table.

Command:  python -m experiments.theory --config=experiments/configs/theory_gains.py
          python -m experiments.theory --config=experiments/configs/theory_gains.py:quick
          python -m experiments.theory --config=experiments/configs/theory_gains.py --config.runs="('runs/a','runs/b')"
          (a run takes part once it was run, or run again, with --config.analysis.gains=500; its students are in the store)
Device:   a laptop's CPU.

Source: arXiv 2405.15116, 2501.19105, 2412.03881, 2502.00620, 2405.16043, 2605.05742. All sizes are our proposals.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    """`arg`: "" or `quick`, fewer draws."""
    if arg not in (None, "", "quick"):
        raise ValueError(f"theory_gains:{arg}: allowed is theory_gains or theory_gains:quick")
    quick = arg == "quick"
    c = ConfigDict()
    c.name = "theory_gains"
    c.runs = ()  # workdirs of finished runs, a tuple
    c.seed = 0
    c.worlds = 40 if quick else 300  # planted worlds of each kind, and populations of each kind
    c.pairs = 100 if quick else 500  # logistic students and teachers
    c.dimension = 100  # of these
    c.size = 120  # points of a population
    c.draws = 200 if quick else 2000  # of the bootstrap of rank correlations
    return c
