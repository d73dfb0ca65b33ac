"""Expansion: bounds on what a student corrects, held against its errors where every quantity is known, and on embeddings.

Command:  python -m experiments.theory --config=experiments/configs/theory_expansion.py
          python -m experiments.theory --config=experiments/configs/theory_expansion.py:quick
          (with embeddings: --config.arrays=<file.npz>, which holds x f[R, D], weak i[R] with -1 = no weak label, gold i[R];
          of a finished run: --config.run=runs/quickstart)
Device:   a laptop's CPU.

Source: arXiv 2405.16043. The populations and all sizes are our proposals.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    """`arg`: "" or `quick`, a tenth of the draws."""
    if arg not in (None, "", "quick"):
        raise ValueError(f"theory_expansion:{arg}: allowed is theory_expansion or theory_expansion:quick")
    c = ConfigDict()
    c.name = "theory_expansion"
    c.seed = 0

    # 1 bounds against errors on populations of two views
    c.draws = 50 if arg == "quick" else 500  # in which a bound is below 1, for each kind and eta
    c.size = 120  # points
    c.etas = (0.0, 0.03)  # neighbours that may differ; edges to S_i^bad are few, so with a large eta nothing expands to it
    c.dependence = 0.6  # of the views, drawn up to this

    # 2 along the dependence
    c.dependences = (0.0, 0.2, 0.4, 0.6, 0.8)
    c.draws_each = 10 if arg == "quick" else 100

    # 3 embeddings
    c.arrays = ""  # an .npz; "" = without
    c.run = ""  # workdir of a run with analysis.gains: its student's states, what a method taught; "" = without
    c.run_method = "ntf"
    c.neighbours = 10
    c.resamples = 40  # probes beside the student
    c.l2 = 0.1  # of the probes, on standardised features
    c.probe_etas = (0.0,)
    return c
