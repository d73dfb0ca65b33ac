"""The report's bytes depend on its numbers only, its page asks for nothing, and every gap is explained."""

import dataclasses
import json
import re

import numpy as np
import pytest

from w2s_jax import comparison, figures, mechanism_page, metrics, recovery, report
from w2s_jax.analysis.better_than_gold import BetterThanGold
from w2s_jax.analysis.coherence import Coherence
from w2s_jax.analysis.easy_first import EasyFirst, Learnt
from w2s_jax.analysis.mechanisms import Mechanisms
from w2s_jax.chain import Point
from w2s_jax.chain_page import Snowball
from w2s_jax.recovery import Trial
from w2s_jax.types import Audit, Certificate, Recovery, Score

# Update this list only together with the page that pins recovery.json and with its schema number.
ROW_KEYS = """method domain test teacher student objective generation seed uses_target_gold accuracy base gt teacher_accuracy
recovery recovery_lo recovery_hi pgr reason n_selected n_test purity auc ece brier""".split()


def _trials(seeds: int = 2, methods=("naive", "ntf", "gold"), scored: bool = True) -> list[Trial]:
    trials = []
    names, num = tuple(f"q{i}" for i in range(600)), 600
    level = {"naive": 0.7, "ntf": 0.79, "gold": 0.8, "difficulty_matched": 0.7}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)

        def score(accuracy, rng=rng):
            return Score(names, ("",) * num, ("arc_easy",) * num, rng.random(num) < accuracy) if scored else None

        correct = rng.random(300) < 0.6
        audits = {m: metrics.audit(rng.random(300), correct if "gold" in methods else None, np.arange(50)) for m in methods}
        trials.append(
            Trial(
                "world_knowledge",
                "small",
                "large",
                "sft",
                0,
                seed,
                score(0.6),
                score(0.5),
                {m: score(level[m]) for m in methods},
                frozenset({"gold"}),
                dict.fromkeys(methods, 50),
                audits,
            )
        )
    return trials


def _write(folder, trials, **more):
    rows = [row for trial in trials for row in recovery.recover(trial)]
    return report.write(folder, rows=rows, summary=recovery.summarise(trials), audits=trials[0].audits, **more)


def _learning(text="a <b>bold</b> answer & more"):
    def group(number, reward):
        answers = [{"text": f"{text} {number}", "final": "7", "reward": reward}, {"text": "?", "final": "", "reward": 0.0}]
        return {"round": number, "question": f"<q{number}>", "wanted": f"w{number}", "answers": answers}

    curves = {"reward": [(0, 0.25), (1, 0.5), (2, 0.875)], "sampler_gap_max": [(0, 1e-6), (1, 2e-6), (2, 3e-6)]}
    return report.Learning(curves, [group(0, 0.0), group(4, 0.5), group(9, 1.0)])


def _files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        _write(tmp_path / name, _trials(), learning={"ntf": _learning()}, context={"config": "lr: 1e-4"})
    one, two = _files(tmp_path / "one"), _files(tmp_path / "two")
    assert one == two
    assert set(one) == {
        "recovery.json",
        "recovery.md",
        "index.html",
        "data/recovery.csv",
        "data/reliability.csv",
        "data/trust.csv",
        "data/purity.csv",
        "data/learning.csv",
    }


def test_what_an_earlier_report_wrote_and_this_one_does_not_is_gone(tmp_path):
    known = {"chain": "ntf", "generation": 1, "teacher": "small", "student": "large", "uses_target_gold": False}
    known |= {"seeds": 1, "n_selected": 50}
    point = Point(**{field.name: known.get(field.name) for field in dataclasses.fields(Point)})
    shown = dict(snowball=Snowball((point,), ()), mechanisms=_mechanisms(), learning={"ntf": _learning()})
    _write(tmp_path / "first", _trials(), **shown)
    assert {"chain.json", "data/coherence.csv", "data/snowball.csv"} <= set(_files(tmp_path / "first"))
    (tmp_path / "first" / "data" / "mine.csv").write_text("a\n")
    _write(tmp_path / "first", _trials())
    _write(tmp_path / "alone", _trials())
    assert _files(tmp_path / "first") == _files(tmp_path / "alone") | {"data/mine.csv": b"a\n"}


def test_nothing_written_but_the_context_holds_a_path_or_a_date(tmp_path):
    _write(tmp_path / "report", _trials())
    for name, content in _files(tmp_path / "report").items():
        assert str(tmp_path).encode() not in content, name
        assert not re.search(rb"\b20\d\d-\d\d-\d\d", content), name


def test_recovery_json_has_the_pinned_schema(tmp_path):
    _write(tmp_path, _trials())
    text = (tmp_path / "recovery.json").read_text()
    found = json.loads(text)
    assert set(found) == {"schema", "rows", "summary"} and found["schema"] == 1
    assert len(found["rows"]) == 3 * 2 * 2 and len(found["summary"]) == 3
    assert all(set(row) == set(ROW_KEYS) for row in found["rows"])
    assert ROW_KEYS == [f.name for f in dataclasses.fields(Recovery)]
    assert json.dumps(found, sort_keys=True, indent=1, ensure_ascii=False) + "\n" == text
    assert all(0 <= row["accuracy"] <= 1 and row["recovery"] < 2 for row in found["rows"])
    assert not re.search(r"\d\.\d{7}", text), "floats have 6 places"
    assert {s["verdict"] for s in found["summary"] if s["method"] != "gold"} <= set(comparison.VERDICTS)


def test_numpy_numbers_and_last_bits_do_not_reach_the_file():
    row = recovery.recover(_trials()[0])[0]
    noisy = dataclasses.replace(row, accuracy=np.float64(row.accuracy + 1e-12), n_test=np.int64(row.n_test))
    assert report.to_json([row], []) == report.to_json([noisy], [])
    with pytest.raises(ValueError):
        report.to_json([dataclasses.replace(row, accuracy=float("nan"))], [])


def test_the_page_asks_for_nothing_over_the_network(tmp_path):
    page = _write(tmp_path, _trials()).read_text()
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / link).exists(), link
    assert "<script" not in page and "<img" not in page


def test_what_students_wrote_is_shown_of_the_first_and_the_last_round_and_never_as_markup(tmp_path):
    page = _write(tmp_path, _trials(1), learning={"ntf": _learning()}).read_text()
    assert "<b>bold</b>" not in page and "a &lt;b&gt;bold&lt;/b&gt; answer &amp; more 0" in page
    for number in (0, 9):
        assert f"&lt;q{number}&gt;" in page and f"<b>w{number}</b>" in page and f"Round {number}<" in page
    assert "w4" not in page and "<td>7</td><td>1</td>" in page and "<td>?</td><td>–</td><td>0</td>" in page
    plain = _write(tmp_path / "plain", _trials(1)).read_text()
    assert page.count("<svg") == plain.count("<svg") + 2 and "while they learnt" not in plain
    assert (tmp_path / "data/learning.csv").read_text().splitlines() == [
        "method,curve,step,value",
        *(f"ntf,reward,{step},{value}" for step, value in ((0, "0.25"), (1, "0.5"), (2, "0.875"))),
        *(f"ntf,sampler_gap_max,{step},{step + 1}e-06" for step in range(3)),
    ]
    assert 'href="data/learning.csv"' in page and not (tmp_path / "plain/data/learning.csv").exists()


def test_a_student_whose_curves_are_elsewhere_is_shown_without_them(tmp_path):
    page = _write(tmp_path, _trials(2), learning={"ntf": report.Learning({}, _learning().rounds[:1])}).read_text()
    assert "No curves of NTF: the student was taught in another workdir." in page and page.count("Round 0<") == 1
    assert "Of one seed, the last." in page


def test_the_page_states_every_verdict_and_what_was_run(tmp_path):
    trials = _trials()
    page = _write(tmp_path, trials, context={"config": "a < b"}).read_text()
    for s in recovery.summarise(trials):
        assert figures.name(s.method) in page and (s.verdict or "reference") in page
    assert "a &lt; b" in page
    assert page.count("<svg") == 2 + 2 + 2, "recovery and purity for two widths, one card for each method without gold labels"


def test_methods_that_saw_gold_are_marked_and_have_no_trust_figure(tmp_path):
    trials = _trials()
    _write(tmp_path, trials)
    rows = [row for trial in trials for row in recovery.recover(trial)]
    table = report.terminal_table(rows, recovery.summarise(trials))
    assert "gold†" in table and "ntf†" not in table and "† its student saw gold labels" in table
    assert "gold" not in (tmp_path / "data/purity.csv").read_text()


def test_the_terminal_table_is_aligned():
    trials = _trials()
    lines = report.terminal_table([r for t in trials for r in recovery.recover(t)], recovery.summarise(trials)).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("method"))
    for column in ("purity", "AUC", "accuracy", "PGR"):
        end = lines[head].index(column) + len(column)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines[head : head + 4]), column


@pytest.mark.parametrize("scored", [True, False])
def test_without_gold_everything_is_written_and_says_so(tmp_path, scored):
    trials = _trials(1, methods=("naive", "ntf"), scored=scored)
    page = _write(tmp_path, trials).read_text()
    table = report.terminal_table([r for t in trials for r in recovery.recover(t)], recovery.summarise(trials))
    for text in (page, table, (tmp_path / "recovery.md").read_text()):
        assert "no gold" in text
    assert "naive, ntf: no gold" in table
    assert "1 seed (intervals cover questions, not training)" in page


def test_a_missing_ratio_is_explained_in_numbers(tmp_path):
    trial = _trials(1)[0]
    flat = dataclasses.replace(trial, base=trial.trained["gold"])
    page = _write(tmp_path, [flat]).read_text()
    assert "no ratio" in page and "gold - base is 0.000" in page and "not above zero" in page


def _summary(**changes) -> recovery.Summary:
    """A summary in which no two numbers are the same."""
    by_test = {
        t: dict(zip(("accuracy", "lo", "hi", "base", "gt", "teacher"), np.array(v) / 100, strict=True))
        for t, v in {
            "easy": (81, 80, 82, 61, 91, 51),
            "hard": (77, 75, 78, 57, 87, 47),
            "mean": (79, 78, 80, 59, 89, 49),
        }.items()
    }
    one = recovery.Summary(
        method="ntf", domain="d", test="mean", teacher="small", student="large", objective="sft", generation=2,
        uses_target_gold=False, seeds=3, n_selected=1234, n_test=5678, accuracy=0.79, accuracy_lo=0.781, accuracy_hi=0.802,
        base=0.59, gt=0.89, teacher_accuracy=0.49, recovery=0.66, recovery_lo=0.61, recovery_hi=0.72, recovery_median=0.67,
        pgr_median=0.75, difference=-0.1, difference_lo=-0.12, difference_hi=-0.083, margin=0.03, verdict="lossy", power=0.4,
        needed_n=9123, purity=0.93, auc=0.84, ece=0.05, brier=0.11, by_test=by_test,
    )  # fmt: skip
    return dataclasses.replace(one, **changes)


def test_every_number_stands_in_its_own_column(tmp_path):
    s = _summary()
    row = recovery.recover(_trials()[0])[0]
    link = {"domain": "d", "teacher": "small", "student": "large", "generation": 2, "test": "mean"}
    rows = [dataclasses.replace(row, **link, method="ntf", seed=n, recovery=n / 10) for n in (5, 6)]
    rows += [dataclasses.replace(rows[0], recovery=0.99, **other) for other in ({"test": "easy"}, {"method": "naive"})]
    lines = report.terminal_table(rows, [s]).splitlines()
    assert lines[0] == "d: small → large, sft, generation 2; 3 seeds, 5,678 test questions"
    assert lines[1] == "Accuracy: teacher 49.0 %, student before training 59.0 %, student on gold labels 89.0 %."
    line = next(line for line in lines if line.startswith("ntf"))
    assert re.split("  +", line) == (
        ["ntf", "1,234", "0.93", "0.84", "79.0", "[78.1, 80.2]", "66", "[61, 72]", "75", "lossy", "50 60"]
    )
    markdown = report.to_markdown([s], {}, "t")
    assert "| ntf | 1,234 | 0.93 | 66 [61, 72] | 75 | −10.0 [−12.0, −8.3] | lossy |" in markdown.replace("NTF", "ntf")
    for line in (
        "| Teacher | 49.0 | 51.0 | 47.0 |",
        "| Student before training | 59.0 | 61.0 | 57.0 |",
        "| 79.0 [78.0, 80.0] | 81.0 [80.0, 82.0] | 77.0 [75.0, 78.0] |",
    ):
        assert line in markdown
    report.write(tmp_path, rows=[], summary=[s], audits={})
    assert (tmp_path / "data/recovery.csv").read_text().splitlines()[1] == (
        "d,small,large,sft,2,ntf,0.79,0.781,0.802,0.59,0.89,0.49,0.66,0.61,0.72"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Falls short of training on gold labels: −10.0 [−12.0, −8.3] points. It recovers 66 % [61, 72] of their gain."),
        ({"verdict": "near-lossless"}, "Equals training on gold labels to within 3 points: −10.0"),
        ({"verdict": "super-recovery"}, "Beats training on gold labels: −10.0"),
        ({"verdict": "undetermined"}, "5,678 questions show equality with power 0.40 only; about 9,100 would give 0.8."),
        ({"verdict": "undetermined", "needed_n": None}, "power 0.40 only; no number would give 0.8 with so few seeds."),
        ({"recovery": None, "reason": "too small; other"}, "No ratio is given: too small."),
        ({"verdict": None}, "The reference: the same student, trained on the gold labels of 1,234 questions."),
        ({"gt": None, "reason": "no gold: none here"}, "Accuracy 79.0 % [78.1, 80.2]; none here."),
        ({"accuracy": None, "reason": "no gold: no answers"}, "Not scored: no answers."),
    ],
)
def test_a_verdict_is_told_with_its_own_numbers(changes, said):
    assert said in report.to_markdown([_summary(**changes)], {}, "t")


def test_an_audits_numbers_stand_in_its_own_columns(tmp_path):
    parts = {name: np.array([[n + 0.25, n + 0.5, n + 1.0]]) for n, name in enumerate(("reliability", "histogram", "curve"))}
    limits = {"auc_interval": (0.701, 0.902), "purity_interval": None}
    audit = Audit(auc=0.811, ece=0.052, brier=0.113, purity=0.934, **limits, **parts)
    page = report.write(tmp_path, rows=[], summary=[_summary()], audits={"ntf": audit}).read_text()
    assert '<td>0.811 <span class="ci">[0.701, 0.902]</span></td><td>0.052</td><td>0.113</td><td>0.934</td>' in page
    assert "0.811 [0.701, 0.902] | 0.052 | 0.113 | 0.934 |" in (tmp_path / "recovery.md").read_text()
    found = {name: (tmp_path / f"data/{name}.csv").read_text().splitlines()[1] for name in ("reliability", "trust", "purity")}
    assert found == {"reliability": "ntf,0.25,0.5,1", "trust": "ntf,1.25,1.5,2", "purity": "ntf,2.25,2.5,3"}


def _certificate(**changes) -> Certificate:
    curve = np.array([[0.0, 200, 0.7, 0.61, 900, 1.0], [0.5, 120, 0.925, 0.85, 450, 0.5], [0.9, 0, np.nan, 0, 0, 0]])
    usual = dict(purity=0.8, delta=0.05, bound="hoeffding", pool="population", threshold=0.5, curve=curve, caveats=())
    return Certificate(**usual | changes)


def test_a_certificate_is_told_drawn_and_given_as_numbers_and_its_caveats_stand_beside_it(tmp_path):
    told = _certificate(caveats=("not valid out of distribution: calibrated on a, applied to b",))
    page = _write(tmp_path, _trials(1), certificates={"ntf": told}).read_text()
    for text in (page, (tmp_path / "recovery.md").read_text()):
        for said in (
            "With confidence 0.95, at least 0.850 of the labels like those taught are right (wanted: 0.8; bound: hoeffding).",
            "0.925 of 120 calibration questions are right, and 450 target questions are kept (coverage 50.0%).",
            "not valid out of distribution: calibrated on a, applied to b.",
        ):
            assert said in text
    assert "score ≥ 0.5" in page and "wanted 80 %" in page and 'href="data/certificate.csv"' in page
    plain = _write(tmp_path / "plain", _trials(1)).read_text()
    assert page.count("<svg") == plain.count("<svg") + 1 and "What purity is certified?" not in plain
    assert (tmp_path / "data/certificate.csv").read_text().splitlines() == [
        "method,threshold,calibration_questions,calibration_purity,lower_bound,target_kept,coverage",
        "ntf,0,200,0.7,0.61,900,1",
        "ntf,0.5,120,0.925,0.85,450,0.5",
        "ntf,0.9,0,,0,0,0",
    ]
    nothing = _write(tmp_path / "nothing", _trials(2), certificates={"ntf": _certificate(threshold=None)}).read_text()
    assert "Nothing is certified: no bound of the purity reaches 0.8." in nothing and "Of one seed, the last." in nothing


def test_every_control_has_a_name_and_says_what_it_is_for(tmp_path):
    known = ("shuffled", "flipped", "same_purity", "difficulty_matched")
    part = [_summary(), *(_summary(method=method, uses_target_gold=method == "same_purity") for method in known)]
    page = report.write(tmp_path, rows=[], summary=part, audits={}).read_text()
    for text in (page, (tmp_path / "recovery.md").read_text()):
        for method in known:
            assert figures.name(method) != method and figures.name(method) in text
            assert report.ROWS[method].replace("'", "&#x27;" if text is page else "'") in text
    assert len({figures.name(method) for method in known}) == len({figures.colour(method) for method in known}) == 4


def test_rows_that_are_only_drawn_to_match_have_no_trust_figure(tmp_path):
    trials = _trials(1, methods=("ntf", "difficulty_matched", "gold"))
    _write(tmp_path, trials)
    assert "difficulty_matched" not in (tmp_path / "data/purity.csv").read_text()
    assert "difficulty_matched" in (tmp_path / "data/recovery.csv").read_text()


def test_an_empty_report_is_a_report(tmp_path):
    page = report.write(tmp_path, rows=[], summary=[], audits={}).read_text()
    assert "No results" in page and report.terminal_table([], []) == "no results\n"


# Mechanisms


def _mechanisms(**changes) -> Mechanisms:
    """Numbers of which no two are the same."""
    decile = np.array([[0.125, 4.5, 0.25, 30], [0.5, 3.0, 0.5, 30], [0.875, 1.5, 0.75, 40]])
    stratum = np.array([[1.0, 0.9, 55, 0.8], [4.0, 0.3, 45, 0.1]])
    eased = EasyFirst("ntf", "task", 100, -0.61, -0.72, -0.53, 0.81, 0.74, 0.701, 0.781, 2.95, 1.55, decile, stratum)
    own = dataclasses.replace(eased, method="naive", rho=0.013, stratum=stratum * [1, 1, 1, 0.5])
    other = dataclasses.replace(eased, difficulty="teacher", rho=None, rho_lo=None, rho_hi=None, reason="it is constant")
    better = BetterThanGold("ntf", "oracle 7B", 50, 12, 9, 4, 2, 3, 2 / 3, 0.299, 0.925, -0.031)
    gradients = (
        Coherence("ntf", 64, 0.21, 0.18, 0.25, 0.33, 0.27, 0.39, 5.5, 21.25, 0.87, 0.79, 0.92),
        Coherence("naive", 63, 0.04, stable_rank=9.75, effective_rank=44.5, signal=0.11, reason="no interval"),
    )
    usual = dict(
        easy_first=(own, eased, other),
        better=(
            better,
            dataclasses.replace(better, method="naive", judged=0, share=None, share_lo=None, gap=None, margin=10.0),
        ),
        coherence=gradients,
        learnt={"ntf": Learnt("loss", 120, 0.6543), "gold": Learnt("reward", 9, 0.5)},
        notes=("something was not measured: it was not asked for",),
    )
    return Mechanisms(**usual | changes)


def test_each_mechanism_is_told_in_its_own_columns_and_given_as_numbers(tmp_path):
    page = _write(tmp_path, _trials(2), mechanisms=_mechanisms()).read_text()
    markdown = (tmp_path / "recovery.md").read_text()
    for line in (
        "| NTF | the task's own | 100 | −0.61 [−0.72, −0.53] | 0.810 | 0.740 [0.701, 0.781] | 2.95 | 1.55 |",
        "| NTF | −log p of the teacher | 100 | – | 0.810 |",
        "| mean difficulty | labels | teacher right, % | Naive, % chosen | NTF, % chosen |",
        "| 1.00 | 55 | 90.0 | 40.0 | 80.0 |",
        "| 4.00 | 45 | 30.0 | 5.0 | 10.0 |",
        "| NTF | loss | 120 | 0.6543 |",
        "| NTF | oracle 7B | 50 | 12 | 9 | 4 | 2 | 3 | 67 [30, 92] | −0.03 |",
        "| Naive | oracle 7B ± 10 | 50 | 12 | 0 |",
        "| NTF | 64 | +0.210 [+0.180, +0.250] | 0.330 [0.270, 0.390] | 5.50 | 21.25 | +0.870 [+0.790, +0.920] |",
        "| Naive | 63 | +0.040 | 0.110 | 9.75 | 44.50 | – |",
        "- NTF: it is constant.",
        "- Something was not measured: it was not asked for.",
    ):
        assert line in markdown, line
        cells = [cell.strip() for cell in line.strip("|- ").split(" | ")]
        for cell in cells:
            assert report.escape(cell.split(" [")[0]) in page, cell
    place = [
        page.index(f"<h2>{heading}") for heading in ("How good were the trust", "Why it works: mechanisms", "How the numbers")
    ]
    assert place == sorted(place) and "Of one seed, the last" in page
    data = {name: (tmp_path / f"data/{name}.csv").read_text().splitlines() for name in MECHANISM_FILES}
    for name, lines in data.items():
        assert f'href="data/{name}.csv"' in page and len(lines) > 1
    assert data["easy_first"][2] == "ntf,task,100,-0.61,-0.72,-0.53,0.81,0.74,0.701,0.781,2.95,1.55,"
    assert data["easy_first_deciles"][:2] == [
        "method,difficulty,mean_trust,mean_difficulty,share_right,labels",
        "naive,task,0.125,4.5,0.25,30",
    ]
    assert data["easy_first_strata"][3] == "ntf,task,1,0.9,55,0.8"
    assert data["learning_area"] == ["method,curve,steps,area", "ntf,loss,120,0.6543", "gold,reward,9,0.5"]
    assert data["better_than_gold"][1] == "ntf,oracle 7B,50,12,9,4,2,3,0.666667,0.299,0.925,-0.031,,0"
    assert data["coherence"][2] == "naive,63,0.04,,,0.11,,,9.75,44.5,,,,no interval"


MECHANISM_FILES = ("easy_first", "easy_first_deciles", "easy_first_strata", "learning_area", "better_than_gold", "coherence")


def test_what_was_not_measured_is_not_shown(tmp_path):
    plain = _write(tmp_path / "plain", _trials(1)).read_text()
    for name, found in (("none", None), ("empty", Mechanisms(notes=("nothing to judge with",)))):
        page = _write(tmp_path / name, _trials(1), mechanisms=found).read_text()
        assert page == plain and "mechanisms" not in (tmp_path / name / "recovery.md").read_text()
    parts = {"easy_first": (2, 3), "better": (0, 1), "coherence": (0, 1), "learnt": (0, 1)}
    whole = _mechanisms()
    for name, (figures_more, files_more) in parts.items():
        page = _write(tmp_path / name, _trials(1), mechanisms=Mechanisms(**{name: getattr(whole, name)})).read_text()
        assert page.count("<svg") == plain.count("<svg") + figures_more, name
        assert page.count('href="data/') == plain.count('href="data/') + files_more, name
        assert "Of one seed" not in page and "Why it works: mechanisms" in page


def test_the_deciles_are_drawn_without_gold_and_not_where_trust_has_one_value():
    eased = _mechanisms().easy_first[1]
    blind = dataclasses.replace(eased, decile=eased.decile * [1, 1, np.nan, 1])
    for narrow in (False, True):
        both, one = (figures.deciles([e], narrow=narrow) for e in (eased, blind))
        assert "right labels, %" in both and "right labels, %" not in one and "mean difficulty" in one
        assert both == figures.deciles([eased], narrow=narrow) != both.replace(figures.colour("ntf"), "")
    flat = dataclasses.replace(eased, decile=eased.decile[:1])
    assert "<svg" not in mechanism_page.section(Mechanisms(easy_first=(flat,)), [], False)


def test_methods_that_were_labelled_otherwise_stand_in_no_common_table_of_strata():
    eased = _mechanisms().easy_first
    other = dataclasses.replace(eased[1], method="icl_confidence", stratum=eased[1].stratum + [0, 0, 1, 0])
    (difficulty, (head, body)), _ = mechanism_page.strata_tables((*eased, other))
    assert difficulty == "task" and head[3:] == ["Naive, % chosen", "NTF, % chosen"] and len(body) == 2


def test_the_control_of_equal_difficulty_is_told_where_the_table_has_it():
    part = [_summary(), _summary(method="naive", accuracy=0.71), _summary(method="difficulty_matched", accuracy=0.745)]
    (said,) = mechanism_page.matched(part)
    assert "Naive 71.0 % [78.1, 80.2], Random, same difficulty 74.5 % [78.1, 80.2], NTF 79.0 % [78.1, 80.2]." in said
    assert mechanism_page.matched(part[:2]) == []
    assert mechanism_page.matched([dataclasses.replace(part[0], generation=1), *part[1:]]) == []
    assert said in "\n".join(mechanism_page.markdown(_mechanisms(), part, False))


def test_the_terminal_is_told_of_ntf_in_two_lines():
    lines = mechanism_page.terminal_lines(_mechanisms())
    assert lines == [
        "ntf: trust and difficulty (the task's own): Spearman −0.61 [−0.72, −0.53]; AUC 0.81, within difficulty 0.74",
        "ntf: of 9 judged labels that differ from gold, 67 % [30, 92] are at least as good",
    ]
    assert mechanism_page.terminal_lines(Mechanisms()) == []
