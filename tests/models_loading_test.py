"""Loading needs little more memory on the host than the parameters themselves, whatever the model's size.

`python tests/models_loading_test.py DIR [DTYPE]` prints the figures of a Hugging Face directory, in MB. On a CPU
the parameters lie in the host's memory too, so their bytes are taken off the peak.
"""

import gc
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.models import decoder, hf_io, tokenizer
from w2s_jax.models.config import DecoderConfig
from w2s_jax.types import LM

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = DecoderConfig(8192, 1024, 24, 16, 8, 64, 3072, family="qwen3", qk_norm=True, tied=True)


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(path, dtype) -> dict[str, int]:
    """Loads a model and says, in MB: its parameters, what the host held beside them at the peak, two layers, a shard."""
    config = hf_io.check(path)
    tokenizer.Tokenizer.load(path)  # imports, which are not what is measured
    jnp.zeros(1).block_until_ready()
    gc.collect()
    before = peak = anonymous()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    params = jax.block_until_ready(hf_io.load(path, dtype=dtype, key="not asked for here").params)
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    stacks = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    shard = max(file.stat().st_size for file in pathlib.Path(path).glob("*.safetensors"))
    sizes = {"params": size, "beside": peak - before - size, "two_layers": 2 * stacks // config.num_layers, "shard": shard}
    return {name: round(value / 1e6) for name, value in sizes.items()} | {"seconds": round(seconds)}


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_host_holds_two_layers_and_a_shard_at_most(checkpoint, dtype):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(checkpoint), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    assert sizes["params"] == {"float32": 1242, "bfloat16": 621}[dtype]
    assert sizes["beside"] <= sizes["two_layers"] + sizes["shard"], sizes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """0.6 GB in bfloat16, in shards of 0.1 GB."""
    path, draw = tmp_path_factory.mktemp("checkpoint"), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape, np.float32), jnp.bfloat16), decoder.shapes(CONFIG)
    )
    hf_io.save(LM(CONFIG, params, tokenizer.word_level(["a", "b"])), path, max_shard_bytes=100_000_000)
    assert len(list(path.glob("*.safetensors"))) > 5
    return path


if __name__ == "__main__":
    for name, value in measure(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None).items():
        print(name, value)
