"""Linear: how often a logistic student beats itself by a weaker logistic teacher's labels, how far, and on what it depends.

Command:  python -m experiments.theory --config=experiments/configs/theory_linear.py
          python -m experiments.theory --config=experiments/configs/theory_linear.py:quick
Device:   a laptop's CPU.

Source: arXiv 2605.05742 (the setting). All sizes are our proposals.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    """`arg`: "" or `quick`, fewer pairs, steps and questions."""
    if arg not in (None, "", "quick"):
        raise ValueError(f"theory_linear:{arg}: allowed is theory_linear or theory_linear:quick")
    quick = arg == "quick"
    c = ConfigDict()
    c.name = "theory_linear"
    c.seed = 0
    c.pairs = 96 if quick else 1000  # students and teachers for each line of a table
    c.dimension = 100

    # 1 all questions
    c.dimensions = (10, 100) if quick else (10, 100, 1000)
    c.cosines = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the table of best points
    c.norms = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # initial lengths of the student
    c.conditions = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the questions' covariance
    c.noises = (0.0, 0.1, 0.2, 0.3, 0.4)  # eta, shares of turned labels; drawn questions take the largest
    c.rate = 0.05 if quick else 0.02
    c.steps = 600 if quick else 3000
    c.records = 300  # points of a curve, a divisor of both numbers of steps

    # 2 drawn questions
    c.samples = (50, 200, 1000) if quick else (50, 100, 200, 500, 1000, 2000)
    c.draws = 8  # of each number; they share the pairs evenly
    c.batch = 50  # questions of a stochastic step, a divisor of each number
    c.sample_rate = 0.1
    c.sample_steps = 300 if quick else 600

    # 3 phase diagram
    c.cells = 8 if quick else 20  # along each side
    c.cell_pairs = 25
    c.lowest = -0.5  # of cos(T,*)
    return c
