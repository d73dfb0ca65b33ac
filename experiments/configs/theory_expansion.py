"""Expansion: bounds on what a student corrects, held against its errors where every quantity is known, and on embeddings.

Command:  python -m experiments.theory --config=experiments/configs/theory_expansion.py
          python -m experiments.theory --config=experiments/configs/theory_expansion.py:quick
          (with embeddings: --config.arrays=<file.npz>, which holds x f[R, D], weak i[R] with -1 = no weak label, gold i[R];
          of a finished run: --config.run=runs/quickstart)
          python -m experiments.theory --config=experiments/configs/theory_expansion.py:texts \
            --config.texts.model=DIR --config.texts.root=DATA        (nothing but hidden states of texts)
Device:   a laptop's CPU.

Source: arXiv 2405.16043. The populations and all sizes are our proposals.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    """`arg`: "", `quick` (a tenth of the draws), or `texts` (no draws, for texts alone)."""
    if arg not in (None, "", "quick", "texts"):
        raise ValueError(
            f"theory_expansion:{arg}: allowed is theory_expansion, theory_expansion:quick or theory_expansion:texts"
        )
    c = ConfigDict()
    c.name = "theory_expansion"
    c.seed = 0

    # 1 bounds against errors on populations of two views
    c.draws = {"quick": 50, "texts": 0}.get(arg, 500)  # in which a bound is below 1, for each kind and eta
    c.size = 120  # points
    c.etas = (0.0, 0.03)  # neighbours that may differ; edges to S_i^bad are few, so with a large eta nothing expands to it
    c.dependence = 0.6  # of the views, drawn up to this

    # 2 along the dependence
    c.dependences = (0.0, 0.2, 0.4, 0.6, 0.8)
    c.draws_each = {"quick": 10, "texts": 0}.get(arg, 100)

    # 3 embeddings
    c.arrays = ""  # an .npz; "" = without
    c.run = ""  # workdir of a run with analysis.gains: its student's states, what a method taught; "" = without
    c.run_method = "ntf"
    c.texts = texts()
    c.neighbours = 10
    c.resamples = 40  # probes beside the student
    c.l2 = 0.1  # of the probes, on standardised features
    c.probe_etas = (0.0,)
    return c


def texts():
    """Is a question of one of MMLU's sciences? Its hidden state says; words tell the student."""
    c = ConfigDict()
    c.model = ""  # a Hugging Face directory or hub id; "" = without
    c.root = ""  # folder of local rows, "" = the hub
    c.split = "mmlu:test"
    c.size = 1600  # half of them of these subjects
    c.subjects = (
        "abstract_algebra",
        "anatomy",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    )
    # Regular expressions of whole words
    c.words = tuple(
        "energy forces? velocity mass electrons? electric magnetic cells? genes? dna proteins? species acids? ions? reactions? "
        "temperature equations? integers? functions? matrix probability algorithms? programs? planets? light".split()
    )
    c.other_words = tuple(
        "government courts? laws? contracts? she he her his company markets? moral war policy political economic social people "
        "patients? plaintiff defendant".split()
    )
    c.ending = "\nThis question is about"
    c.layer = 20
    c.shape = ConfigDict({"row_length": 256, "batch_rows": 4, "max_segments": 8})
    return c
