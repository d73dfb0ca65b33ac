"""Training does not depend on where it runs: meshes, accumulation, and checkpoints that move to other devices.

Run as a script (with eight simulated devices) it prints what the tests compare.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from tests.trainer_test import ADAMW, FULL, lesson
from w2s_jax.models import decoder, hf_io, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.packing import Shape
from w2s_jax.student import sft, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import LM

ROOT = pathlib.Path(__file__).parents[1]
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}
TRAINING = dataclasses.replace(
    FULL, epochs=10.0, lr=1e-3, checkpoint_every=8, optimizer=dataclasses.replace(ADAMW, weight_decay=0.1)
)
SHAPE = Shape(row_length=16, batch_rows=8, max_segments=4)


def teach(mesh, folder, training=TRAINING, shape=SHAPE, stop_at=None):
    """The taught model, its losses and gradient norms; `stop_at` = the step after which the process "dies"."""
    config = dataclasses.replace(tiny.CONFIG, num_heads=4, num_kv_heads=2)
    lm = LM(config, jax.device_put(decoder.init(config, jax.random.key(3))), tiny.lm().tokenizer)
    compute = Compute(mesh)
    lm = dataclasses.replace(lm, params=compute.place_params(lm.params))
    seen = {}

    def log(step, metrics):
        seen[step] = (metrics["loss"], metrics["grad_norm"])
        if step == stop_at:
            raise KeyboardInterrupt

    try:
        taught = trainer.teach(
            lm, lesson(n=64), sft.make(), encode=Asking(lm.tokenizer, "direct", False, 64).answer, training=training,
            shape=shape, compute=compute, key=jax.random.key(0), partial=folder, log=log,
        )  # fmt: skip
    except KeyboardInterrupt:
        return None, seen
    return taught.lm, seen


def gap(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def compare(one, other):
    """Largest gap of the parameters, and of losses and gradient norms of the steps that both took."""
    (lm, seen), (other_lm, other_seen) = one, other
    params = max(map(gap, jax.tree.leaves(lm.params), jax.tree.leaves(other_lm.params)))
    steps = sorted(set(seen) & set(other_seen))
    return {"params": params, "first": gap(seen[steps[0]], other_seen[steps[0]]), "steps": len(steps)}


def main(folder):
    assert jax.device_count() == 8
    made, found = {}, {}
    for lora_rank in (0, 4):
        training = dataclasses.replace(TRAINING, lora_rank=lora_rank, lora_targets=("q", "k", "v", "o", "gate", "up", "down"))
        for name, sizes in MESHES.items():
            mesh = sharding.make_mesh(*sizes)
            made[name] = teach(mesh, folder / f"{lora_rank}-{name}", training)
            found[f"lora {lora_rank} mesh {name}"] = compare(made[name], made["1x1x1"])
        for A in (2, 4):
            small = dataclasses.replace(SHAPE, batch_rows=8 // A)
            more = dataclasses.replace(training, accumulation=A)
            other = teach(sharding.make_mesh(2), folder / f"{lora_rank}-accumulation{A}", more, small)
            found[f"lora {lora_rank} accumulation {A}"] = compare(other, made["1x1x1"])
    # A checkpoint of eight devices goes on with eight, four, two and one.
    whole = made["2x2x2"]
    for name, sizes in {"8": (2, 2, 2), "4": (1, 2, 2), "2": (2, 1, 1), "1": (1, 1, 1)}.items():
        place = folder / f"moved-{name}"
        teach(sharding.make_mesh(2, 2, 2), place, training, stop_at=12)
        moved = teach(sharding.make_mesh(*sizes), place, training)
        found[f"moved to {name}"] = compare(moved, whole) | {"resumed": min(moved[1])}
        if name == "8":
            found["moved to 8"]["same bits"] = all(
                np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(lm.params) for lm in (moved[0], whole[0])), strict=True)
            )
    mesh = sharding.make_mesh(2, 2, 2)
    born = trainer.moments({"model": whole[0].params, "own": {}}, optimizer=ADAMW, mesh=mesh)
    places = jax.tree.map(lambda x: x.sharding, born)
    want = sharding.param_shardings(born, mesh)
    found["born"] = {
        "in place": jax.tree.all(jax.tree.map(lambda x, a, b: a.is_equivalent_to(b, x.ndim), born, places, want)),
        "split": sum(x.addressable_shards[0].data.size < x.size for x in jax.tree.leaves(born)),
    }
    hf_io.save(whole[0], folder / "saved")
    again = hf_io.load(folder / "saved").params
    found["saved"] = {"params": max(map(gap, jax.tree.leaves(again), jax.tree.leaves(whole[0].params)))}
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }  # fmt: skip
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("meshes"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_mesh_changes_neither_losses_nor_gradients_nor_the_student(found, name, lora_rank):
    one = found[f"lora {lora_rank} mesh {name}"]
    assert one["steps"] >= 20 and one["first"] <= 1e-5 and one["params"] <= 1e-4, one


@pytest.mark.slow
@pytest.mark.parametrize("A", [2, 4])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_accumulation_changes_neither_losses_nor_gradients_nor_the_student(found, A, lora_rank):
    one = found[f"lora {lora_rank} accumulation {A}"]
    assert one["steps"] >= 20 and one["first"] <= 1e-5 and one["params"] <= 1e-4, one


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["8", "4", "2", "1"])
def test_a_checkpoint_of_eight_devices_goes_on_elsewhere(found, devices):
    one = found[f"moved to {devices}"]
    assert one["resumed"] == 8 and one["params"] <= 1e-4 and one["first"] <= 1e-5, one
    assert one.get("same bits", True)


@pytest.mark.slow
def test_moments_are_born_where_the_rules_want_them(found):
    assert found["born"]["in place"] and found["born"]["split"] >= 16


@pytest.mark.slow
def test_what_a_mesh_saves_one_device_loads(found):
    assert found["saved"]["params"] == 0


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
