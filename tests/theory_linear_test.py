"""A logistic student beats itself where the sign rule says so, and as far as the closed form says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import theory_linear
from w2s_jax.theory import flow, gaussian, linear
from w2s_jax.theory.pairs import Pairs, cosine, draw, weak_and_strong

GOLDEN = {10: (0.85, 0.98), 100: (0.97, 1.0), 1000: (0.98, 1.0)}  # d: share that beats itself, sign rule agrees; of 60 pairs
FAST = {"rate": 0.02, "steps": 200, "records": 10}  # the golden values are of 3,000 steps; who rises does so in the first ones


def rng(seed=0):
    return np.random.default_rng(seed)


def some(number=64, dimension=12, seed=0):
    return weak_and_strong(rng(seed), number, dimension)


def small(**changed):
    c = theory_linear.get_config("quick").to_dict()
    c.pop("name")
    tiny = dict(
        pairs=8, dimension=6, dimensions=(6,), cosines=(0.5, 0.8), norms=(0.5, 4.0), conditions=(1.0, 9.0), noises=(0.0, 0.3)
    )
    tiny |= dict(samples=(20,), draws=2, batch=10, steps=20, sample_steps=20, records=10, cells=3, cell_pairs=2)
    return c | tiny | changed


# ---- Formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment, power", [(gaussian.slope, 0), (gaussian.along, 2)])
def test_the_quadrature_is_right_for_short_and_long_models(moment, power):
    z = np.linspace(-12, 12, 2_000_001)
    for s in (0.01, 0.5, 2.0, 8.0, 50.0):
        exact = np.trapezoid(z**power * np.exp(-(z**2) / 2) / (4 * np.cosh(np.minimum(abs(s * z), 300) / 2) ** 2), z)
        assert float(moment(s)) == pytest.approx(exact / np.sqrt(2 * np.pi), rel=1e-5)


def mean_loss(w, root, teacher):
    """The loss over all questions N(0, root root'), by a fine quadrature of its own."""
    z = jnp.linspace(-9, 9, 4001)
    weight = jnp.exp(-(z**2) / 2)
    size = jnp.linalg.norm(root.T @ w)
    linear_part = w @ root @ gaussian.soft(root.T @ teacher)
    return jnp.sum(weight / weight.sum() * jax.nn.softplus(size * z)) - linear_part  # E sigma(w_T.x) w.x, up to a constant


@pytest.mark.parametrize("turned", [False, True])
def test_the_spectrum_is_that_of_the_loss_differentiated_twice(turned):
    d = 5
    w, teacher, mix = rng(1).standard_normal(d), rng(2).standard_normal(d), rng(3).standard_normal((d, d))
    covariance = mix @ mix.T + np.eye(d) if turned else np.eye(d)
    root = np.linalg.cholesky(covariance)
    found = jax.hessian(mean_loss)(jnp.asarray(w), jnp.asarray(root), jnp.asarray(teacher))
    assert np.allclose(gaussian.hessian(w, covariance), found, atol=3e-4 * np.abs(found).max())
    if not turned:
        values = np.linalg.eigvalsh(found)
        size = np.linalg.norm(w)
        assert np.allclose(values, sorted([*[float(gaussian.slope(size))] * (d - 1), float(gaussian.along(size))]), atol=2e-5)
        assert values[1:] == pytest.approx(values[-1], abs=2e-5) and values[0] < 0.8 * values[-1]  # d - 1 alike, one lower


def test_a_step_goes_down_the_gradient_of_the_loss():
    d = 4
    w, teacher, mix = rng(1).standard_normal(d), rng(2).standard_normal(d), rng(3).standard_normal((d, d))
    covariance = mix @ mix.T + np.eye(d)
    gradient = jax.grad(mean_loss)(jnp.asarray(w), jnp.linalg.cholesky(jnp.asarray(covariance)), jnp.asarray(teacher))
    variance, _ = gaussian.principal(covariance)
    u, t = gaussian.whiten(w, covariance), gaussian.whiten(teacher, covariance)
    pair = Pairs(*(v[None].astype(np.float32) for v in (u, t, t / np.linalg.norm(t))))
    after = flow.population(pair, variance=variance, rate=0.01, steps=1, records=1).student[0]
    assert np.allclose((gaussian.unwhiten(after, covariance) - w) / -0.01, gradient, atol=1e-3)


def test_the_pull_of_labels_is_their_mean_over_questions():
    teacher = np.array([1.2, -0.5, 0.3], np.float32)
    z = np.asarray(jax.random.normal(jax.random.key(0), (400_000, 3)))
    for pulls, says in linear.LABELS.values():
        mean = (np.asarray(says(jnp.asarray(z @ teacher)))[:, None] - 0.5) * z
        assert np.allclose(pulls(jnp.asarray(teacher)), mean.mean(0), atol=4e-3)


def test_best_points_of_known_cosines():
    assert gaussian.best_of_independent(0.8, 0.5) == pytest.approx(0.8238, abs=5e-5)
    assert gaussian.best_in_plane(0.8, 0.5, 0.8 * 0.5) == pytest.approx(0.8238, abs=5e-5)
    assert gaussian.best_in_plane(0.8, 0.3, 0.6) == 0.8  # the rule fails: nowhere better than at the start
    assert gaussian.best_in_plane(0.4, 0.9, 0.6) == 0.9  # the better teacher is the best point


# ---- Paths -----------------------------------------------------------------------------------------------------------


def test_pairs_have_the_cosines_and_lengths_they_were_drawn_for():
    wanted = dict(
        cos_s=np.array([0.9, -0.2]), cos_t=np.array([0.1, 0.5]), norm_s=np.array([0.5, 3.0]), norm_t=np.array([1.0, 2.0])
    )
    pairs = draw(rng(), 7, **wanted, orthogonal=True)
    cos_s, cos_t, cos_st = pairs.cosines()
    assert np.allclose(cos_s, wanted["cos_s"], atol=1e-6) and np.allclose(cos_t, wanted["cos_t"], atol=1e-6)
    assert np.allclose(cos_st, cos_s * cos_t, atol=1e-6)
    assert np.allclose(np.linalg.norm(pairs.teacher, axis=1), wanted["norm_t"], atol=1e-6)


@pytest.mark.parametrize("d", GOLDEN)
def test_shares_are_those_of_the_golden_draws(d):
    pairs = weak_and_strong(rng(7), 300 if d == 1000 else 1000, d)
    path = flow.population(pairs, **FAST)
    share, agreement = GOLDEN[d]
    error = np.sqrt(share * (1 - share) * (1 / 60 + 1 / len(path.best)))
    assert abs(path.improved.mean() - share) < 2.6 * error
    assert (gaussian.helps(*pairs.cosines()) == path.improved).mean() > agreement - 1.6 / 60


def test_the_best_point_of_orthogonal_errors_is_the_closed_form():
    of = lambda value: np.full(16, value)  # noqa: E731
    pairs = draw(rng(), 20, cos_s=of(0.8), cos_t=of(0.5), norm_s=rng().uniform(0.5, 4, 16), norm_t=of(2.0), orthogonal=True)
    best = flow.population(pairs, rate=0.05, steps=1200, records=10).best
    assert np.allclose(best, 0.8238, atol=1e-4)


def test_the_best_point_is_the_one_in_the_plane():
    pairs = some(200, 12)
    path = flow.population(pairs, rate=0.05, steps=1200, records=10)
    assert np.allclose(path.best, gaussian.best_in_plane(*pairs.cosines()), atol=2e-4)
    assert path.improved.any() and not path.improved_at_end.any()  # in the end there is the teacher, who is weaker


def test_the_path_in_the_plane_is_the_path():
    pairs = some(50, 30)
    whole, flat = (flow.population(one, labels=gaussian.hard, **FAST) for one in (pairs, pairs.in_plane()))
    assert np.allclose(whole.curve, flat.curve, atol=1e-5) and np.allclose(whole.norm, flat.norm, atol=1e-4)
    assert np.array_equal(whole.improved, flat.improved)


def test_what_a_path_tells_is_what_its_steps_did():
    pairs = some(6, 5)
    path = flow.population(pairs, rate=0.2, steps=40, records=40)
    assert np.allclose(path.curve[0], path.start) and np.allclose(path.curve[-1], path.end)
    assert np.allclose(path.curve.max(0), path.best, atol=1e-6)
    assert np.allclose(path.curve[path.step, range(6)], path.best, atol=1e-6)
    assert np.allclose(cosine(path.student, pairs.truth), path.end, atol=1e-6)
    assert np.allclose(np.linalg.norm(path.student, axis=1), path.norm, atol=1e-5)


def test_a_longer_student_turns_more_slowly_to_the_same_best_point():
    pairs = some(40)
    short, long = (
        flow.population(dataclasses.replace(pairs, student=k * pairs.student), rate=0.1, steps=1500, records=10) for k in (1, 4)
    )
    rises = short.improved
    assert np.allclose(short.best[rises], long.best[rises], atol=1e-3)
    assert np.median(long.step[rises] / short.step[rises]) > 3


def test_the_start_rises_or_falls_as_its_sign_says_whatever_the_covariance():
    pairs = some(300, 8)
    variance = gaussian.spectrum(8, 100.0)
    first = flow.population(pairs, variance=variance, rate=0.005, steps=1, records=1)
    speed = flow.velocity(pairs, variance=variance)
    sure = np.abs(speed) > 1e-3
    assert sure.sum() > 200 and np.array_equal((first.end > first.start)[sure], speed[sure] > 0)
    assert np.mean(gaussian.helps(*pairs.cosines()) == (speed > 0)) < 0.97  # the plain rule is one for alike directions
    alike = flow.velocity(pairs)
    assert np.array_equal(gaussian.helps(*pairs.cosines())[np.abs(alike) > 1e-5], (alike > 0)[np.abs(alike) > 1e-5])


def test_turned_labels_end_hard_labels_growth():
    pairs = some(20)
    kept, turned = (
        flow.population(pairs, labels=gaussian.hard, noise=eta, rate=1.0, steps=1500, records=10) for eta in (0.0, 0.2)
    )
    assert np.allclose(turned.norm * np.asarray(gaussian.slope(turned.norm)), 0.6 / np.sqrt(2 * np.pi), atol=1e-4)
    assert (kept.norm > 2 * turned.norm).all()


def test_settings_are_inputs_of_one_program():
    pairs = some(8, 5)
    flow.population(pairs, rate=0.1, steps=10, records=5)
    compiled = flow._population._cache_size()
    for labels, noise, variance, rate in ((gaussian.hard, 0.0, 1.0, 0.2), (gaussian.soft, 0.3, gaussian.spectrum(5, 9.0), 0.3)):
        flow.population(pairs, labels=labels, noise=noise, variance=variance, rate=rate, steps=10, records=5)
    flow.population(some(8, 5, seed=3), rate=0.1, steps=10, records=5)
    assert flow._population._cache_size() == compiled


# ---- Drawn questions -------------------------------------------------------------------------------------------------

DRAWN = dict(draws=2, key=jax.random.key(1), rate=0.2, steps=60, records=6)


def test_many_drawn_questions_are_as_good_as_all():
    pairs = some(8, 5)
    variance = gaussian.spectrum(5, 4.0)
    for pulls, says in linear.LABELS.values():
        everything = flow.population(pairs, labels=pulls, noise=0.2, variance=variance, rate=0.2, steps=60, records=6)
        drawn = flow.sample(pairs, n=50_000, says=says, noise=0.2, variance=variance, **DRAWN)
        assert np.allclose(drawn.curve, everything.curve, atol=0.03)
        few = flow.sample(pairs, n=20, says=says, noise=0.2, variance=variance, **DRAWN)
        assert np.abs(few.curve - everything.curve).max() > 0.05


def test_small_steps_on_minibatches_go_where_the_whole_gradient_goes():
    pairs, slow = some(8, 5), DRAWN | {"rate": 0.02, "steps": 200, "records": 4}
    whole, named, parts = (flow.sample(pairs, n=40, batch=size, **slow) for size in (None, 40, 10))
    assert np.array_equal(whole.curve, named.curve)
    assert 1e-5 < np.abs(whole.curve - parts.curve).max() < 0.02  # they pass over all 40 questions, ten at a time


def test_pairs_of_one_draw_see_the_same_questions():
    one = some(1, 5)
    pairs = Pairs(*(np.repeat(v, 4, 0) for v in (one.student, one.teacher, one.truth)))
    end = flow.sample(pairs, n=10, **DRAWN).end
    assert end[0] == pytest.approx(end[1], abs=1e-6) and end[2] == pytest.approx(end[3], abs=1e-6)
    assert abs(end[0] - end[2]) > 1e-3


# ---- The study -------------------------------------------------------------------------------------------------------


def test_the_study_tells_what_the_flow_did():
    found = linear.study(**small())
    tables = {table.name: table for table in found.tables}
    for table in found.tables:
        assert all(len(row) == len(table.head) for row in table.rows), table.name
    share = tables["dimension"].rows[0][1]
    pairs = weak_and_strong(linear._rng(0, "dimension 6"), 8, 6)
    assert share == flow.population(pairs, rate=0.2, steps=20, records=10).improved.mean()
    assert [row[:2] for row in tables["labels"].rows] == [("soft", 0.0), ("soft", 0.3), ("hard", 0.0), ("hard", 0.3)]
    assert {row[2] for row in tables["best_points"].rows if row[:2] == (0.8, 0.5)} == {
        float(gaussian.best_of_independent(0.8, 0.5))
    }
    assert len(tables["sample"].rows) == 5
    heat = found.figures[0]
    assert (
        heat.value.shape == (3, 3) and heat.value[2, 0] == 1.0 and heat.value[0, 2] < heat.value[2, 0]
    )  # y upwards, x to the right


@pytest.mark.parametrize(
    "changed, says",
    [
        (dict(noises=(0.5,)), r"noise \(eta\) runs from 0.5 to 0.5"),
        (dict(noises=(-0.1, 0.1)), r"noise \(eta\) runs from -0.1"),
        (dict(rate=0.0), "rate=0: allowed is above 0"),
        (dict(sample_rate=9.0), "rate=9: allowed is above 0 and below 8"),
        (dict(conditions=(0.5,)), "condition=0.5"),
        (dict(dimension=1), "dimension=1: allowed are 2 and more"),
        (dict(cosines=(0.5, 1.2)), r"cosine lies in \[-1, 1\]"),
        (dict(norms=(0.0,)), "norms"),
        (dict(steps=25), "steps=25, records=10"),
        (dict(lowest=-1.5), "lowest=-1.5"),
        (dict(draws=5), "draws=5"),
        (dict(samples=(15,)), "samples has 15"),
        (dict(pairs=0), "pairs=0"),
    ],
)
def test_a_setting_out_of_range_is_named(changed, says):
    with pytest.raises(ValueError, match=says):
        linear.study(**small(**changed))


@pytest.mark.parametrize(
    "covariance, says",
    [
        (np.diag([1.0, 0.0]), "singular"),
        (np.ones((3, 3)), "singular"),
        (np.array([1.0, -1.0]), "singular"),
        (np.array([[1.0, 0.5], [0.1, 1.0]]), "not symmetric"),
        (np.array([2.0]), "d >= 2"),
        (np.ones((2, 3)), "shape"),
        (np.array([1.0, np.nan]), "not finite"),
    ],
)
def test_a_covariance_that_is_none_is_refused(covariance, says):
    with pytest.raises(ValueError, match=says):
        gaussian.principal(covariance)


SEVERAL = ("dimensions", "cosines", "norms", "conditions", "noises", "samples")


def study(**changed):
    given = theory_linear.get_config("quick").to_dict() | changed
    del given["name"]
    return linear.study(**given)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: gaussian.helps(1.1, 0.5, 0.5), "cos_s=1.1"),
        (lambda: gaussian.best_in_plane(0.5, np.nan, 0.5), "cos_t=nan"),
        (lambda: gaussian.best_in_plane(0.5, 0.5, 1.0), "one line"),
        (lambda: gaussian.best_of_independent(1.0, 0.5), "cos_s=1"),
        (lambda: draw(rng(), 1, cos_s=[0.5], cos_t=[0.5], norm_s=[1], norm_t=[1]), "dimension=1"),
        (lambda: draw(rng(), 5, cos_s=[-1.5], cos_t=[0.5], norm_s=[1], norm_t=[1]), "cos_s"),
        (lambda: flow.sample(some(8, 5), n=10, batch=3, **DRAWN), "batch=3"),
        (lambda: flow.sample(some(8, 5), n=10, **(DRAWN | {"draws": 3})), "draws=3"),
        (lambda: flow.population(some(8, 5), rate=8.0), "rate=8: allowed is above 0 and below 8"),
        (lambda: flow.population(some(8, 5), variance=np.array([1, 1, 1, 1, 0.0])), "singular"),
        (lambda: theory_linear.get_config("fast"), "theory_linear:fast"),
        *((lambda name=name: study(**{name: ()}), f"{name} is empty") for name in SEVERAL),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()
