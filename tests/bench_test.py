"""The benchmark compares like with like: all contestants do the same work, on the same tokens."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments import bench, turns
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
