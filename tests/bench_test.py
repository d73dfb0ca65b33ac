"""The benchmark compares like with like: all contestants do the same work, on the same tokens."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import bench, bench_trust, bench_writing, isolated, turns
from experiments import main as cli
from tests import tiny, toy
from w2s_jax.models import decoder

needs_peers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "peft", "trl")), reason="the peers are not installed"
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "folders", lambda config: (str(tmp_path / "run"), str(tmp_path / "store")))
    for name, value in (("ROWS", 12), ("REPEATS", 1), ("PEER_ROWS", 4)):
        monkeypatch.setattr(bench, name, type("Flag", (), {"value": value}))
    c = toy.get_config()
    c.student.training.lora_rank = 2
    return c


@needs_peers
@pytest.mark.slow
@pytest.mark.parametrize("name, num_peers", [("hidden", 2), ("sft", 3)])
def test_a_bench_runs_and_its_contestants_agree(name, num_peers, config, capsys):
    found = bench.BENCHES[name](config)
    json.dumps(found)
    assert found["bench"] == name and len(found["peers"]) == num_peers
    assert set(found) == {"bench", "case", "ours", "peers", "ratio_best_peer", "versions", "machine"}
    best = max(np.median(each) for each in found["peers"].values())
    assert found["ratio_best_peer"] == pytest.approx(np.median(found["ours"]["tokens_per_s"]) / best, rel=2e-2)
    told = [line for line in capsys.readouterr().err.splitlines() if "largest difference" in line or "mean loss" in line]
    assert len(told) == num_peers + 1


@needs_peers
@pytest.mark.slow
def test_decode_runs_and_its_contestants_agree(config, monkeypatch, capsys):
    sizes = {"REQUESTS": 6, "SLOTS": 2, "LENGTHS": (2, 6), "COMPARED": 2, "COMPARED_TOKENS": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_writing, name, value)
    found = bench_writing.decode(config, prompts="", repeats=1, transformers=bench.peers(), with_tunix=False)
    assert found["bench"] == "decode" and len(found["peers"]) == 2 and "ratio_best_unfair_peer" in found
    assert "transformers: 2 of 2 greedy answers are ours" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is a contestant")
@pytest.mark.slow
def test_trust_trains_the_same_heads_in_all_contestants_and_compiles_once(config, monkeypatch, capsys):
    pytest.importorskip("peft"), pytest.importorskip("trl")
    for name, value in (("ROWS", 800), ("FEATURES", 6), ("HEADS", 4)):
        monkeypatch.setattr(bench, name, type("Flag", (), {"value": value}))
    config.trust.neural.update(epochs=10, batch_rows=64, lr=3e-3)
    found = bench.BENCHES["trust"](config)
    json.dumps(found)
    assert found["bench"] == "trust" and found["compilations"] == 1
    assert list(found["peers"]) == list(found["ratios"]) == ["ours, one by one", "torch"]
    assert found["ratio_best_peer"] == pytest.approx(min(found["ratios"].values()), rel=1e-2)
    assert "torch: held-back AUC 0." in capsys.readouterr().err


def test_heads_of_another_quality_are_no_peer(config, monkeypatch):
    monkeypatch.setattr(turns, "PACKAGES", ("jax",))
    monkeypatch.setattr(turns.time, "sleep", lambda seconds: None)
    config.trust.neural.update(epochs=2, lr=3e-3)
    chance = lambda settings, *parts, auc: lambda: np.full(len(settings), 0.5)  # noqa: E731
    sizes = dict(rows=200, features=3, num_heads=2, repeats=1)
    with pytest.raises(ValueError, match="torch and ours differ by .* they do not do the same work"):
        bench_trust.trust(config, **sizes, torch_heads=chance)


def test_forced_lengths_are_log_uniform_and_always_the_same():
    found = bench_writing.forced_lengths(1000)
    assert found == bench_writing.forced_lengths(1000) and min(found) >= 16 and max(found) <= 256
    assert np.mean(np.array(found) < 64) == pytest.approx(0.5, abs=0.05)


def test_batches_hold_each_request_once_and_sorted_ones_waste_least():
    limits = bench_writing.forced_lengths(64)
    ways = bench_writing.batches(limits)
    steps = {}
    for name, way in ways.items():
        assert sorted(r for rows in way for r in rows) == list(range(64)) and {len(rows) for rows in way} == {16}
        steps[name] = sum(max(limits[r] for r in rows) for rows in way)
    assert ways["arrival"][0] == list(range(16)) and steps[bench_writing.SORTED] < steps["arrival"]


def test_only_wanted_tokens_count_and_missing_ones_are_seen():
    way, limits = [[2, 0], [1]], [3, 2, 5]
    assert bench_writing.lengths(way, limits, [[[7] * 5, [7] * 5], [[7] * 2]]) == limits
    assert bench_writing.lengths(way, limits, [[[7] * 4, [7] * 4], [[7] * 2]]) == [3, 2, 4]


def test_another_model_is_no_peer():
    mine = [[1, 2], [3, 4], [5, 6], [7, 8]]
    bench_writing.compare({"ours": mine, "theirs": [*mine[:3], [7, 9]]})
    with pytest.raises(ValueError, match="theirs writes other greedy answers"):
        bench_writing.compare({"ours": mine, "theirs": [*mine[:2], [5, 7], [7, 9]]})


def test_a_peer_that_knows_the_future_is_told_apart(monkeypatch):
    monkeypatch.setattr(turns, "PACKAGES", ("jax",))
    seconds = {"ours": [1.0], "fair": [2.0], "slow": [4.0], "oracle": [0.5]}
    found = turns.summary("decode", "case", seconds, 100, unfair=["oracle"], versions={"tunix": "0"})
    assert (found["ratio_best_peer"], found["ratio_best_unfair_peer"]) == (2.0, 0.5)
    assert set(found["versions"]) == {"jax", "tunix"} and found["peers"]["oracle"] == [200.0]


def test_a_peer_that_ended_is_said(monkeypatch):
    monkeypatch.setattr(isolated, "environment", lambda: pathlib.Path("/bin/false"))
    with pytest.raises(ValueError, match="the tunix peer ended"), isolated.Tunix() as peer:
        peer.ask(do="load")


def test_turns_alternate_and_the_first_does_not_count():
    order = []
    contestants = {"ours": lambda: order.append("a") or 1, "theirs": lambda: order.append("b") or 2}
    seconds, results = turns.take_turns(contestants, repeats=2)
    assert order == list("ababab") and results == {"ours": 1, "theirs": 2}
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_floating_point_operations_are_those_of_the_blocks_weights():
    params = decoder.init(tiny.CONFIG, jax.random.key(0))
    kernels = [x.size for path, x in jax.tree_util.tree_leaves_with_path(params["layers"]) if "kernel" in str(path[-1])]
    assert bench.forward_flops(tiny.CONFIG) == 2 * sum(kernels)
