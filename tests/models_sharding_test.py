"""One device or eight: the same numbers. Runs in one subprocess, because the number of simulated devices is fixed at start."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from w2s_jax.models import decoder, likelihood, lora, sharding
from w2s_jax.models.config import DecoderConfig

CONFIG = DecoderConfig(32, 16, 3, 4, 2, 4, 24, qkv_bias=True, family="qwen2", pattern=("global", "global"), init_std=0.3)
OLMO2 = dataclasses.replace(
    CONFIG, num_layers=2, pattern=("global",), family="olmo2", qkv_bias=False, norm_place="post", qk_norm=True,
    qk_norm_joint=True,
)  # fmt: skip
GEMMA3 = dataclasses.replace(
    OLMO2, num_layers=3, family="gemma3_text", norm_place="sandwich", norm_offset=1.0, qk_norm_joint=False, tied=True,
    activation="gelu_tanh", embed_scale=4.0, pattern=("local", "global"), window=3, local_rope_theta=1e3,
)  # fmt: skip
ROOT = pathlib.Path(__file__).parent.parent


def gap(a, b):
    """The largest relative difference."""
    scale = max(np.abs(np.asarray(b)).max(), 1e-30)
    return np.abs(np.asarray(a) - np.asarray(b)).max() / scale


def noise(shapes, seed=0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: draw.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def weights(config):
    """Parameters and adapters."""
    params = noise(decoder.shapes(config))
    return params, noise(jax.eval_shape(lambda: lora.init(params, jax.random.key(1), 2)), 1)


def texts():
    """Packed rows: token, segment, position, probe."""
    token = np.random.default_rng(2).integers(0, 32, (8, 12)).astype(np.int32)
    segment = np.repeat([[1] * 5 + [2] * 4 + [0] * 3], 8, 0).astype(np.int32)
    position = np.repeat([[*range(5), *range(4), 0, 0, 0]], 8, 0).astype(np.int32)
    return token, segment, position, np.full((8, 1), 4, np.int32)


def placed(trees, rows, sizes):
    """A mesh, and both on it."""
    mesh = sharding.make_mesh(*sizes)
    trees = jax.device_put(trees, sharding.param_shardings(trees, mesh))
    return mesh, trees, jax.device_put(rows, sharding.batch_sharding(mesh))


def loss(trees, model, token, segment, position, probe):
    params, adapters = trees
    out = model.apply(decoder.variables(params, adapters), token, segment, position, probe, layers=(2,))
    logp, _ = likelihood.token_logp(model, params, out.hidden, token, segment, chunk=4)
    return -logp.sum() / 56, (out.hidden, out.probe, logp)


def family_gaps() -> None:
    """Prints `name gap` lines for the families whose blocks differ: eight devices, all three axes, against one."""
    for name, config in {"olmo2": OLMO2, "gemma3": GEMMA3}.items():
        found = []
        for sizes in ((1, 1, 1), (2, 2, 2)):
            mesh, trees, rows = placed(weights(config), texts(), sizes)
            model = decoder.Decoder(config, lora_scale=0.5, mesh=mesh)
            found.append(jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(trees, model, *rows))
        print(name, max(map(gap, jax.tree.leaves(found[1]), jax.tree.leaves(found[0]))))


def gaps(path) -> None:
    """Prints `name gap` lines: the largest relative difference between eight devices and one."""
    from w2s_jax.models import hf_io, tokenizer
    from w2s_jax.types import LM

    config = dataclasses.replace(CONFIG, pattern=("global",), num_layers=2)
    params, adapters = weights(config)
    hf_io.save(LM(config, params, tokenizer.word_level(["a", "b"])), path)

    def read(trees, model, token, position):
        stacks = [decoder.unstack(config, tree) for tree in trees]
        cache = decoder.init_cache(config, 8, 8)
        hidden, cache = decoder.extend(model, *stacks, cache, token[:, :5], position[:, :5], position[:, :5] >= 0)
        return hidden, cache

    results = {}
    for name, sizes in {"one": (1, 1, 1), "fsdp, tensor": (2, 2, 2), "data": (8, 1, 1)}.items():
        mesh, trees, rows = placed((params, adapters), texts(), sizes)
        model = decoder.Decoder(config, lora_scale=0.5, mesh=mesh, remat="full")
        step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
        (value, (hidden, tap, logp)), grads = step(trees, model, *rows)
        results[name] = dict(loss=value, hidden=hidden, probe=tap, logp=logp, grads=grads)
        if name in ("one", "fsdp, tensor"):
            results[name]["extend"], cache = jax.jit(read, static_argnums=1)(trees, model, rows[0], rows[2])
            results[name]["cache"] = cache
        if name == "fsdp, tensor":
            q = trees[0]["layers"]["block_0"]["attn"]["q"]["kernel"]
            print("shards", *q.sharding.shard_shape(q.shape))
            loaded, plain = hf_io.load(path, mesh=mesh).params, hf_io.load(path).params
            assert jax.tree.map(lambda x: x.sharding, loaded) == sharding.param_shardings(loaded, mesh)
            print("load", max(map(gap, jax.tree.leaves(loaded), jax.tree.leaves(plain))))
            if importlib.util.find_spec("qwix"):
                split, whole = (hf_io.load(path, mesh=m, quantise="int8").params for m in (mesh, None))
                down = split["layers"]["block_0"]["mlp"]["down"]["kernel"]
                assert [x.sharding.spec for x in (down.qvalue, down.scale)] == [
                    P(None, "tensor", "fsdp"),
                    P(None, None, "fsdp"),
                ]
                assert all(map(np.array_equal, jax.tree.leaves(split), jax.tree.leaves(whole)))
    one = results.pop("one")
    for mesh_name, result in results.items():
        for name, value in result.items():
            pairs = zip(jax.tree.leaves(value), jax.tree.leaves(one[name]), strict=True)
            print(f"{mesh_name}/{name}".replace(" ", ""), max(gap(a, b) for a, b in pairs))


def on_eight_devices(*words) -> dict[str, str]:
    """Runs this file on eight simulated devices; its lines, by first word."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }  # fmt: skip
    done = subprocess.run([sys.executable, __file__, *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "full rematerialization" not in done.stderr, done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(tmp_path):
    lines = on_eight_devices("gaps", str(tmp_path))
    assert lines.pop("shards") == "2 8 8"
    assert float(lines.pop("load")) == 0
    assert len(lines) == 2 * 5 + 2
    assert all(float(gap) <= 1e-5 for gap in lines.values()), lines


@pytest.mark.slow
def test_eight_devices_compute_what_one_does_in_blocks_of_other_families():
    lines = on_eight_devices("family_gaps")
    assert set(lines) == {"olmo2", "gemma3"}
    assert all(float(gap) <= 1e-5 for gap in lines.values()), lines


def abstract_mesh(**sizes):
    return jax.sharding.AbstractMesh(tuple(sizes.get(axis, 1) for axis in sharding.AXES), sharding.AXES)


def test_an_axis_that_does_not_divide_is_named_with_sizes_that_do():
    with pytest.raises(ValueError) as error:
        sharding.sharding_of("layers/block_0/attn/k/kernel", (3, 16, 24), abstract_mesh(tensor=16))
    message = "mesh axis tensor=16 does not divide dimension 2 of layers/block_0/attn/k/kernel, which is 24 long"
    assert message in str(error.value) and "[1, 2, 3, 4, 6, 8, 12]" in str(error.value)


def test_every_parameter_adapter_and_moment_has_a_rule():
    import optax

    for config in (OLMO2, GEMMA3, CONFIG):
        params = decoder.shapes(config)
        adapters = jax.eval_shape(lambda params: lora.init(params, jax.random.key(0), 2), params)
        moments = jax.eval_shape(optax.adam(1e-3).init, (params, adapters))
        places = sharding.param_shardings((params, adapters, moments), sharding.make_mesh())
    assert places[0]["layers"]["block_1"]["mlp"]["down"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert places[2][0].mu[0]["rest_0"]["mlp"]["down"]["kernel"].spec == P("tensor", "fsdp")
    with pytest.raises(ValueError, match="no sharding rule for odd of shape"):
        sharding.param_shardings({"odd": np.zeros(3)}, sharding.make_mesh())


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"data=64, fsdp=2, tensor=1 needs 128 devices"):
        sharding.make_mesh(64, 2)


def test_rows_that_do_not_divide_are_refused():
    mesh = abstract_mesh(data=2, fsdp=2)
    with pytest.raises(ValueError, match="6 rows cannot be split over data \\* fsdp = 4 devices; use a multiple of 4"):
        sharding.constrain_rows(np.zeros((6, 2)), mesh)


if __name__ == "__main__":
    assert jax.device_count() == 8
    {"gaps": gaps, "family_gaps": family_gaps}[sys.argv[1]](*sys.argv[2:])
