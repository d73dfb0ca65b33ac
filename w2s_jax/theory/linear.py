"""Does a logistic student beat itself by nothing but its teacher's labels? How often, how far, and on what it depends.

Student, teacher and truth are directions in R^d, questions Gaussian, and "beats itself" means: somewhere on its path, or after
the last step, the student's cosine with the truth is above the one it began with. `gaussian` has the formulas, `flow` paths.

Source: arXiv 2605.05742 (question and setting). Deviations: 1. its theorems' constants are not used; the sign rule and the best
point on the path are our own derivation (`gaussian`). 2. pairs are drawn with wanted cosines and errors in any direction.
"""

from collections.abc import Sequence

import jax
import numpy as np

from w2s_jax import metrics
from w2s_jax.theory import Figure, Heat, Study, Table, flow, gaussian
from w2s_jax.theory.pairs import Pairs, draw, weak_and_strong

LABELS = {"soft": (gaussian.soft, jax.nn.sigmoid), "hard": (gaussian.hard, flow.decides)}
"""What a teacher pulls to over all questions, and what it says of one."""
SHARE = ("share that beats itself", "from", "to")


def study(
    *,
    seed: int,
    pairs: int,
    dimension: int,
    dimensions: Sequence[int],
    norms: Sequence[float],
    conditions: Sequence[float],
    noises: Sequence[float],
    samples: Sequence[int],
    draws: int,
    batch: int,
    cosines: Sequence[float],
    cells: int,
    cell_pairs: int,
    lowest: float,
    rate: float,
    steps: int,
    sample_rate: float,
    sample_steps: int,
    records: int,
) -> Study:
    """Measures all of it.

    Args:
        seed: of every draw.
        pairs: K, students and teachers for each line of a table.
        dimension, dimensions: d, and those that are compared.
        norms: initial lengths of the student that are compared.
        conditions: condition numbers of the questions' covariance that are compared.
        noises: eta, shares of turned labels that are compared.
        samples: n, numbers of drawn questions that are compared.
        draws: of n questions each; they share the pairs evenly.
        batch: questions of a stochastic step, a divisor of every n.
        cosines: cos(S,*) and cos(T,*) of the table of best points.
        cells, cell_pairs, lowest: the phase diagram has cells x cells cells of so many pairs, cos(S,*) from 0 to 1 upwards and
            cos(T,*) from `lowest` to 1.
        rate, steps: of the flow on all questions.
        sample_rate, sample_steps: of the flow on drawn questions.
        records: points of a curve; a divisor of both numbers of steps.

    Raises:
        ValueError: a setting out of its range, by name.
    """
    for name, several in (
        ("dimensions", dimensions), ("cosines", cosines), ("norms", norms), ("conditions", conditions), ("noises", noises),
        ("samples", samples),
    ):  # fmt: skip
        if not several:
            raise ValueError(f"{name} is empty: allowed are one and more; change `{name}`")
    refuse(pairs=pairs, cells=cells, cell_pairs=cell_pairs, draws=draws, lowest=lowest, batch=batch, samples=samples)
    gaussian.best_of_independent(cosines, cosines)
    if wrong := [norm for norm in norms if not norm > 0]:
        raise ValueError(f"norms has {wrong[0]}: allowed are lengths above 0; change `norms`")
    steepest = max(gaussian.spectrum(dimension, condition).max() for condition in (1.0, *conditions))
    flow.check(noises, steepest, rate, steps, records)
    flow.check(noises, 1.0, sample_rate, sample_steps, records)
    along = {"rate": rate, "steps": steps, "records": records}
    drawn = {"rate": sample_rate, "steps": sample_steps, "records": records}
    same = weak_and_strong(_rng(seed, "pairs"), pairs, dimension)
    sample_table, sample_figure = by_sample(same, samples, draws, batch, max(noises), seed, drawn)
    norm_table, norm_figure = by_norm(same, norms, along)
    shares, gains = phases(dimension, cells, cell_pairs, lowest, seed, along)
    return Study(
        title="Logistic students that learn from weaker logistic teachers",
        lead=f"{pairs:,} pairs for each line unless it says otherwise, d = {dimension}, cos(S,*) uniform in [0.5, 0.95], "
        f"cos(T,*) in [0.05, cos(S,*)], lengths in [0.5, 4]; {steps:,} steps of {rate:g} on all questions, {sample_steps:,} of "
        f"{sample_rate:g} on drawn ones. A student beats itself if its cosine with the truth rises above where it began.",
        tables=(
            by_dimension(dimensions, pairs, seed, along),
            best_points(cosines, dimension, pairs, seed, along),
            norm_table,
            by_condition(same, conditions, along),
            by_label(same, noises, along),
            sample_table,
            curvature(norms),
        ),
        figures=(shares, gains, norm_figure, sample_figure),
    )


def refuse(*, pairs: int, cells: int, cell_pairs: int, draws: int, lowest: float, batch: int, samples: Sequence[int]) -> None:
    """Refuses what the flow would not, or only after hours; see `study`."""
    for name, value in (("pairs", pairs), ("cells", cells), ("cell_pairs", cell_pairs), ("draws", draws), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed are 1 and more; change `{name}`")
    if pairs < 2 * draws or draws < 2:
        raise ValueError(f"draws={draws}: allowed are 2 to half of pairs={pairs}; change `draws`")
    if not -1 <= lowest < 1:
        raise ValueError(f"lowest={lowest}: allowed is a cosine from -1 to below 1; change `lowest`")
    if wrong := [n for n in samples if n < 1 or n % batch]:
        raise ValueError(f"samples has {wrong[0]}: allowed are multiples of batch={batch}; change one")


def by_dimension(dimensions: Sequence[int], pairs: int, seed: int, along: dict) -> Table:
    """The share of students that beat themselves, and how often the sign rule foretells it."""
    rows = []
    for d in dimensions:
        one = weak_and_strong(_rng(seed, f"dimension {d}"), pairs, d)
        path = flow.population(one, **along)
        rule, best = gaussian.helps(*one.cosines()), gaussian.best_in_plane(*one.cosines())
        agrees, off = float(np.mean(rule == path.improved)), float(np.abs(path.best - best).max())
        rows.append((d, *share(path.improved), float(path.improved_at_end.mean()), agrees, gain(path), off))
    head = ("d", *SHARE, "at the end", "sign rule agrees", "gain at best, points", "best: off the closed form")
    note = (
        "The rule: cos(T,*) > cos(S,*) cos(S,T). The gain is of accuracy over all questions, at the best point of each path; "
        "its cosine is set beside the closed form in the plane of student and teacher (largest difference). A step that turns "
        "a student far passes over a small rise: a lower rate agrees more often."
    )
    return Table("dimension", head, tuple(rows), note)


def best_points(cosines: Sequence[float], dimension: int, pairs: int, seed: int, along: dict) -> Table:
    """The best point on the path against r^2 = r_S^2 + r_T^2, for pairs with orthogonal errors."""
    places = [(s, t) for s in cosines for t in cosines if t <= s]
    each = -(-pairs // len(places))
    cos_s, cos_t = np.repeat(np.array(places), each, 0).T
    rng = _rng(seed, "best points")
    norm_s, norm_t = rng.uniform(0.5, 4.0, (2, len(cos_s)))
    one = draw(rng, dimension, cos_s=cos_s, cos_t=cos_t, norm_s=norm_s, norm_t=norm_t, orthogonal=True)
    path = flow.population(one, **along)
    rows = []
    for at, (s, t) in enumerate(places):
        best = path.best[at * each : (at + 1) * each]
        wanted = float(gaussian.best_of_independent(s, t))
        rows.append((s, t, wanted, float(best.mean()), float(np.abs(best - wanted).max())))
    head = ("cos(S,*)", "cos(T,*)", "closed form", "best on path, mean", "largest difference")
    return Table("best_points", head, tuple(rows), f"{each} pairs a line, errors orthogonal, lengths in [0.5, 4].")


def by_norm(same: Pairs, norms: Sequence[float], along: dict) -> tuple[Table, Figure]:
    """The same pairs with students of other lengths: where the path leads is the same, how fast it is not."""
    rows, lines = [], {}
    unit = same.student / np.linalg.norm(same.student, axis=-1, keepdims=True)
    for norm in norms:
        path = flow.population(Pairs((norm * unit).astype(np.float32), same.teacher, same.truth), **along)
        arrived = float(np.mean(path.step < along["steps"]))
        rows.append((norm, *share(path.improved), gain(path), float(np.median(path.step)), arrived, gain(path, "end")))
        x = np.linspace(0, along["steps"], len(path.curve))
        lines[f"{norm:g}"] = [(float(a), float(b)) for a, b in zip(x, path.curve.mean(1), strict=True)][1:]
    head = (
        "length of the student",
        *SHARE,
        "gain at best, points",
        "median step of the best",
        "past its best",
        "gain at end, points",
    )
    note = "One set of directions and teachers for all lines; a short student's steps turn it far, and pass over small rises."
    caption = "The longer the student, the slower it turns and the later it is to be stopped; in the end it is its teacher."
    figure = Figure(
        "norm_path", "Mean cosine with the truth, by initial length", "step", "mean cosine with the truth", lines, caption
    )
    return Table("norm", head, tuple(rows), note), figure


def by_condition(same: Pairs, conditions: Sequence[float], along: dict) -> Table:
    """The same pairs under questions whose variances differ: the plain sign rule, and the exact one."""
    rows = []
    for condition in conditions:
        variance = gaussian.spectrum(same.student.shape[-1], condition)
        path = flow.population(same, variance=variance, **along)
        plain = gaussian.helps(*same.cosines())
        exact = flow.velocity(same, variance=variance) > 0
        agree = [float(np.mean(rule == path.improved)) for rule in (plain, exact)]
        rows.append((condition, *share(path.improved), *agree, gain(path), float(np.median(path.step))))
    head = (
        "condition number",
        *SHARE,
        "sign rule agrees",
        "sign of the start agrees",
        "gain at best, points",
        "median step of the best",
    )
    note = (
        "Variances in even ratios, their mean 1; cosines are those of the questions' own metric, w'Cw* / (s s*). The "
        "sign rule is one for condition number 1; the sign of the start is d/dt cos(u, u*) at the first step, for any C."
    )
    return Table("condition", head, tuple(rows), note)


def by_label(same: Pairs, noises: Sequence[float], along: dict) -> Table:
    """The same pairs under soft and hard labels, some of them turned over."""
    rows = []
    for word, (pulls, _) in LABELS.items():
        for noise in noises:
            path = flow.population(same, labels=pulls, noise=noise, **along)
            measured = (gain(path), float(np.median(path.step)), gain(path, "end"), float(path.norm.mean()))
            rows.append((word, noise, *share(path.improved), *measured))
    head = (
        "labels",
        "turned over",
        *SHARE,
        "gain at best, points",
        "median step of the best",
        "gain at end, points",
        "length at end",
    )
    note = (
        "All questions: labels turned over at random make every pull weaker and none of them turn, so the best point is the "
        "same and is reached at another step. Hard labels that are all kept let the student's length grow without end."
    )
    return Table("labels", head, tuple(rows), note)


def by_sample(
    same: Pairs, samples: Sequence[int], draws: int, batch: int, noise: float, seed: int, along: dict
) -> tuple[Table, Figure]:
    """The same pairs on n drawn questions."""
    rows: list[tuple] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    whole = len(same.student) // draws * draws
    few = Pairs(same.student[:whole], same.teacher[:whole], same.truth[:whole])
    together = [str(k // (whole // draws)) for k in range(whole)]
    kinds = [(word, eta, None) for word in LABELS for eta in dict.fromkeys((0.0, noise))] + [("soft", 0.0, batch)]
    for n in samples:
        for word, eta, size in kinds:
            if size == n:
                continue  # the whole gradient, which is there
            key = jax.random.fold_in(jax.random.key(seed), n)
            path = flow.sample(few, n=n, draws=draws, key=key, says=LABELS[word][1], noise=eta, batch=size, **along)
            found = share(path.improved, together)
            median = float(np.median(path.step))
            rows.append(
                (n, word, eta, size or n, *found, gain(path), median, float(path.improved_at_end.mean()), gain(path, "end"))
            )
            name = f"{word}, {size} a step" if size else word + (f", {100 * eta:g} % turned" if eta else "")
            lines.setdefault(name, []).append((float(n), found[0]))
    head = (
        "n",
        "labels",
        "turned over",
        "questions a step",
        *SHARE,
        "gain at best, points",
        "median step of the best",
        "at the end",
        "gain at end, points",
    )
    note = f"{whole:,} pairs over {draws} draws of n questions; intervals treat pairs on one draw as belonging together."
    caption = (
        "With few questions the best moment comes early and is worth little; turned labels, which only slow the flow on all "
        "questions, cost students here."
    )
    figure = Figure(
        "sample_share",
        "Students that beat themselves, on n questions",
        "n, drawn questions",
        "share that beats itself",
        lines,
        caption,
    )
    return Table("sample", head, tuple(rows), note), figure


def curvature(norms: Sequence[float]) -> Table:
    """The spectrum of the loss's Hessian at a model of each length, C = 1."""
    rows = []
    for norm in norms:
        across, own = float(gaussian.slope(norm)), float(gaussian.along(norm))
        rows.append((norm, across, own, across / own))
    head = ("length", "across, d - 1 times", "along, once", "ratio")
    note = "E sigma'(s z) and E[sigma'(s z) z^2]: a long model is held much less along itself than across."
    return Table("spectrum", head, tuple(rows), note)


def phases(dimension: int, cells: int, each: int, lowest: float, seed: int, along: dict) -> tuple[Heat, Heat]:
    """Share of students that beat themselves, and their mean gain at best, over the two cosines with the truth."""
    x, y = ((edge[:-1] + edge[1:]) / 2 for edge in (np.linspace(0, 1, cells + 1), np.linspace(lowest, 1, cells + 1)))
    cos_t, cos_s = (np.repeat(v.ravel(), each) for v in np.meshgrid(y, x, indexing="ij"))
    rng = _rng(seed, "phases")
    norm_s, norm_t = rng.uniform(0.5, 4.0, (2, len(cos_s)))
    one = draw(rng, dimension, cos_s=cos_s, cos_t=cos_t, norm_s=norm_s, norm_t=norm_t)
    path = flow.population(one, **along)
    points = 100 * (gaussian.accuracy(path.best) - gaussian.accuracy(path.start))
    labels = {"x_label": "cos(S,*), the student's", "y_label": "cos(T,*), the teacher's", "x": tuple(x), "y": tuple(y)}
    about = f"{len(cos_s):,} pairs, {each} a cell, d = {dimension}, soft labels, all questions."
    shares, gains = (v.reshape(cells, cells, each).mean(-1) for v in (path.improved, points))
    return (
        Heat("phase_share", "Share of students that beat themselves", value=shares, caption=about, **labels),
        Heat("phase_gain", "Gain at the best point, points of accuracy", value=gains, caption=about, **labels),
    )


def share(improved: np.ndarray, together: Sequence[str] | None = None) -> tuple[float, float, float]:
    """The share of True, and its 95 % interval."""
    low, high = metrics.purity_interval(improved, together)
    return float(improved.mean()), low, high


def gain(path: flow.Path, where: str = "best") -> float:
    """Mean accuracy at that point of the path less the one at its start, in points."""
    return float(100 * np.mean(gaussian.accuracy(getattr(path, where)) - gaussian.accuracy(path.start)))


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """Draws of one purpose stay as they are whatever else is drawn."""
    return np.random.default_rng([seed, *purpose.encode()])
