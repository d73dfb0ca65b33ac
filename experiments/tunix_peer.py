"""google-tunix's side of `experiments.bench decode` and `grpo`; runs in an environment that has tunix and not w2s_jax.

A request is a line of JSON on standard input, `{"do": name, ...}`, and so is its answer on standard output; between two
requests the process sleeps, its model stays loaded. Texts are token numbers written out: both sides read the same prompts.

Used as tunix documents it: `Sampler` on batches that are padded on the left, `GRPOLearner` with the vanilla rollout on the same
mesh. What depends on us is settled in its favour: a cache no longer than the case needs, prompts padded to their batch's
longest instead of to a power of two. One fault of tunix is mended, see `Peer.load`.
"""

import functools
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

NEVER = -2
"""A stop token that no model writes."""


class Numbers:
    """The tokenizer: a text is its tokens' numbers."""

    def __init__(self, pad: int):
        self.pad = pad

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token) -> str:
        return " ".join(map(str, token))

    def bos_id(self) -> int:
        return 0  # none is added

    def eos_id(self) -> int:
        return NEVER

    def pad_id(self) -> int:
        return self.pad


def shape_of(folder: str) -> llama3.ModelConfig:
    """The model's shape as tunix describes it.

    Raises:
        ValueError: tunix's Llama cannot be this model.
    """
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        hf = json.load(file)
    rope = hf.get("rope_parameters") or {"rope_theta": hf["rope_theta"], "rope_type": "default"}
    if hf["model_type"] != "llama" or rope["rope_type"] != "default" or hf.get("attention_bias") or hf.get("mlp_bias"):
        raise ValueError(f"{folder}: model_type {hf['model_type']!r}, rope {rope}: wanted is a plain Llama without biases")
    return llama3.ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=int(rope["rope_theta"]),
        norm_eps=hf["rms_norm_eps"],
        weight_tying=hf["tie_word_embeddings"],
    )


class Peer:
    """What is kept between requests: the model, its sampler."""

    def load(self, *, folder: str, prompts: list[list[int]], cache: int) -> dict:
        """Prompts are those of all later requests; `cache` is the longest row's length."""
        self.shape, self.cache = shape_of(folder), cache
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        seen = {token for prompt in prompts for token in prompt}
        # What equals the padding is never attended to, even if the model wrote it: the last tokens are the rarest.
        self.numbers = Numbers(next(token for token in reversed(range(self.shape.vocab_size)) if token not in seen))
        # tunix 0.1.7 turns all Llamas by 1e6, whatever their `rope_theta` is.
        llama3.apply_rope = functools.partial(llama3.apply_rope, rope_theta=self.shape.rope_theta)
        with self.mesh:
            self.model = llama3_params.create_model_from_safe_tensors(folder, self.shape, self.mesh, dtype=jnp.float32)
        heads = {"num_layers": self.shape.num_layers, "num_kv_heads": self.shape.num_kv_heads, "head_dim": self.shape.head_dim}
        self.sampler = Sampler(self.model, self.numbers, CacheConfig(cache_size=cache, **heads))
        return {"jax": jax.__version__}

    def write(self, *, batches: list[list[list[int]]], length: list[int], temperature: float, seed: int) -> dict:
        """Writes `length[i]` tokens to each prompt of batch i."""
        drawing = {"temperature": temperature, "top_p": 1.0} if temperature else {}
        tokens = []
        with self.mesh:
            for prompts, steps in zip(batches, length, strict=True):
                out = self.sampler(
                    list(map(self.numbers.decode, prompts)),
                    max_generation_steps=steps,
                    max_prompt_length=max(map(len, prompts)),
                    eos_tokens=[NEVER],
                    seed=seed,
                    **drawing,
                )
                tokens.append([np.asarray(row).tolist() for row in out.tokens])
        return {"tokens": tokens}

    def learn(self, *, group: int, steps: int, new_tokens: int, longest: int, lr: float) -> None:
        """Answers `{"prompts": [...]}` with one GRPO step each, until standard input ends."""
        training = rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr, weight_decay=0.0)),
            eval_every_n_steps=10**9,
            max_steps=steps,
        )
        rollout = RolloutConfig(
            max_tokens_to_generate=new_tokens,
            temperature=1.0,
            top_p=1.0,
            max_prompt_length=longest,
            kv_cache_size=self.cache,
            eos_tokens=[NEVER],
        )
        roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT)
        cluster = rl_cluster.RLCluster(
            actor=self.model,
            tokenizer=self.numbers,
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(roles, self.mesh), training_config=training, rollout_config=rollout
            ),
        )
        written: list[int] = []

        def reward(prompts, completions, **_) -> list[float]:
            written.extend(len(text.split()) for text in completions)
            return [float(sum(map(int, text.split())) % 7) for text in completions]

        def rounds():
            """The next batch is asked for when the step before is done."""
            for line in sys.stdin:
                written.clear()
                yield {"prompts": np.array(list(map(self.numbers.decode, json.loads(line)["prompts"])))}
                jax.block_until_ready(jax.tree.leaves(nnx.state(self.model)))
                reply({"written": list(written)})

        reply({})
        with self.mesh:
            GRPOLearner(cluster, GRPOConfig(num_generations=group, beta=0.0), reward_fns=reward).train(rounds())


def reply(found: dict) -> None:
    ANSWERS.write(json.dumps(found) + "\n")
    ANSWERS.flush()


if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "learn":
            peer.learn(**{name: value for name, value in request.items() if name != "do"})
            break
        reply(getattr(peer, request.pop("do"))(**request))
