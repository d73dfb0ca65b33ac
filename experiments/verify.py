"""Is a model computed right? `python -m experiments.verify --model=DIR_OR_ID` compares it with transformers, layer by layer.

The reference is transformers itself (eager attention), which needs torch; or, with `--golden=FILE`, what `--write=FILE` stored
on a machine that has it: a few numbers of each layer and of the logits, tied to the model by its content key. Exit status 1 =
the model is not computed as by the reference.

Errors are max|a - b| / max|b| over the tokens of a few texts that exercise unusual characters, special tokens and spaces.
float32 rounding alone reaches a few 1e-5 in released models, whose activations nearly cancel; a wrong computation is orders of
magnitude off.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import numpy as np
from absl import app, flags

from experiments import main as cli

FLAGS = flags.FLAGS
MODEL = flags.DEFINE_string("model", None, "A local directory or a hub id.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What ours computes in; the reference stays exact.")
REFERENCE = flags.DEFINE_enum("reference", "float32", ["float32", "float64"], "What transformers computes in.")
TOLERANCE = flags.DEFINE_float("tolerance", None, "Largest error that agrees; by default 1e-4 in float32, 5e-2 in bfloat16.")
GOLDEN = flags.DEFINE_string("golden", None, "Compare with these stored numbers; torch is not needed.")
WRITE = flags.DEFINE_string("write", None, "Store the reference's numbers here, for machines without torch.")

TEXTS = (
    "The capital of France is Paris. " * 3,
    "def f(x):\n    return  x + 1  # ünïcödé 日本語 🙂 12345\n",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n",
    "  lead",
)
KEPT = 16  # numbers of each layer's last state, and largest logits, that a golden holds for a text
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True)
class States:
    """What a model makes of the texts.

    Attributes:
        ids: tokens of each text.
        hidden: for each text f32[M + 1, T, D], 0 = embeddings, M = after the final norm.
        logits: for each text f32[T, V].
    """

    ids: list[list[int]]
    hidden: list[np.ndarray]
    logits: list[np.ndarray]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag")
    try:
        agrees = verify(MODEL.value)
    except (ValueError, OSError) as error:
        if cli.TRACEBACK.value:
            raise
        sys.exit(f"error: {error}\n(--traceback shows where)")
    sys.exit(0 if agrees else 1)


def verify(word: str) -> bool:
    """Compares, prints a table and a verdict.

    Raises:
        ValueError: the model is refused, or there is nothing to compare it with.
    """
    from w2s_jax import files
    from w2s_jax.models import hf_io, hub

    folder = hub.local_folder(word)
    key = files.content_key(folder)
    lm = hf_io.load(folder, key=key)
    tolerance = TOLERANCES[DTYPE.value] if TOLERANCE.value is None else TOLERANCE.value
    golden = read_golden(GOLDEN.value, key) if GOLDEN.value else None
    cli.say(f"{word}: {lm.config.family}, {lm.config.num_layers} layers, width {lm.config.width}, {DTYPE.value}")
    mine = ours(lm, DTYPE.value)
    if golden is not None:
        return say_verdict(*against_golden(mine, golden), tolerance, "the stored golden")
    reference = theirs(folder, REFERENCE.value)
    if WRITE.value:
        pathlib.Path(WRITE.value).write_text(json.dumps(make_golden(reference, key, word)) + "\n")
        cli.say(f"wrote {WRITE.value}")
    return say_verdict(*against(mine, reference), tolerance, f"transformers in {REFERENCE.value}")


# ---- The two sides ---------------------------------------------------------------------------------------------------


def ours(lm, dtype: str) -> States:
    """The texts packed into one row, all layers tapped everywhere."""
    import jax

    from w2s_jax.models import decoder

    ids = [lm.tokenizer.encode(text, bos=True) for text in TEXTS]
    token = np.concatenate(ids)[None].astype(np.int32)
    segment = np.repeat(np.arange(len(ids)), list(map(len, ids)))[None].astype(np.int32) + 1
    position = np.concatenate([np.arange(len(i)) for i in ids])[None].astype(np.int32)
    model = decoder.Decoder(lm.config, jax.numpy.dtype(dtype))
    with jax.default_matmul_precision("highest"):
        run = jax.jit(functools.partial(model.apply, layers=tuple(range(lm.config.num_layers + 1))))
        out = run({"params": lm.params}, token, segment, position, np.arange(token.size)[None])
        logits = np.asarray(decoder.logits(model, lm.params, out.hidden))[0]
    hidden = np.asarray(out.probe)[:, 0]
    parts = [segment[0] == number for number in range(1, len(ids) + 1)]
    return States(ids, [hidden[:, part] for part in parts], [logits[part] for part in parts])


def theirs(folder: str, dtype: str) -> States:
    """The texts one by one through transformers.

    Raises:
        ValueError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(
            "there is nothing to compare with: install torch (pip install torch), or give --golden=FILE, written by "
            "--write=FILE on a machine that has it"
        ) from None
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    ).eval()
    ids, hidden, logits = [tokenizer.encode(text) for text in TEXTS], [], []
    for i in ids:
        with torch.no_grad():
            out = model(torch.tensor([i]), output_hidden_states=True, use_cache=False)
        hidden.append(np.stack([state[0].numpy() for state in out.hidden_states]))
        logits.append(out.logits[0].numpy())
    return States(ids, hidden, logits)


# ---- Comparison ------------------------------------------------------------------------------------------------------


def against(mine: States, reference: States) -> tuple[dict[str, float], dict[str, float]]:
    """(largest error of each layer and of the logits, KL and top-1 agreement).

    Raises:
        ValueError: the texts have other tokens.
    """
    refuse_other_tokens(mine.ids, reference.ids)
    errors: dict[str, float] = {}
    for one, other in zip(mine.hidden, reference.hidden, strict=True):
        for layer, (a, b) in enumerate(zip(one, other, strict=True)):
            errors[f"layer {layer}"] = max(errors.get(f"layer {layer}", 0.0), error(a, b))
    errors["logits"] = max(error(a, b) for a, b in zip(mine.logits, reference.logits, strict=True))
    a, b = (log_softmax(np.concatenate(states.logits)) for states in (mine, reference))
    kl = float((np.exp(b) * (b - a)).sum(-1).max())
    return errors, {"largest KL (nats)": kl, "top-1 agreement": float((a.argmax(-1) == b.argmax(-1)).mean())}


def against_golden(mine: States, golden: dict) -> tuple[dict[str, float], dict[str, float]]:
    """The same from the few numbers that a golden holds: errors are relative to the largest of these."""
    refuse_other_tokens(mine.ids, golden["ids"])
    errors: dict[str, float] = {}
    agree = []
    for hidden, logits, kept in zip(mine.hidden, mine.logits, golden["texts"], strict=True):
        for layer, (state, numbers) in enumerate(zip(hidden, kept["hidden"], strict=True)):
            numbers = np.array(numbers)
            found = np.abs(state[-1, : len(numbers)] - numbers).max() / kept["scale"][layer]
            errors[f"layer {layer}"] = max(errors.get(f"layer {layer}", 0.0), float(found))
        found = error(logits[-1, kept["top"]], np.array(kept["logits"]))
        errors["logits"] = max(errors.get("logits", 0.0), found)
        agree.append(int(logits[-1].argmax()) == kept["top"][0])
    return errors, {"top-1 agreement": float(np.mean(agree))}


def make_golden(states: States, key: str, name: str) -> dict:
    """The few numbers; `scale` is what a layer's error is relative to."""
    texts = []
    for hidden, logits in zip(states.hidden, states.logits, strict=True):
        top = np.argsort(-logits[-1])[:KEPT]
        texts.append(
            {
                "hidden": [[float(f"{v:.8g}") for v in state[-1, :KEPT]] for state in hidden],
                "scale": [float(f"{np.abs(state).max():.8g}") for state in hidden],
                "top": top.tolist(),
                "logits": [float(f"{v:.8g}") for v in logits[-1, top]],
            }
        )
    return {"schema": 1, "model": name.rstrip("/").rpartition("/")[2], "key": key, "ids": states.ids, "texts": texts}


def read_golden(path: str, key: str) -> dict:
    """Reads what `make_golden` made.

    Raises:
        ValueError: the file is no golden, or one of another model.
    """
    try:
        golden = json.loads(pathlib.Path(path).read_text())
        known = golden["key"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError(f"--golden={path}: no file that --write made") from None
    if known != key:
        raise ValueError(f"--golden={path} is of another model, {golden['model']} (key {known[:12]}; this one has {key[:12]})")
    return golden


def refuse_other_tokens(mine: list[list[int]], other: list[list[int]]) -> None:
    for text, a, b in zip(TEXTS, mine, other, strict=True):
        if a != b:
            raise ValueError(f"the tokenizers disagree on {text!r}: ours gives {a}, the reference {b}")


def error(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def say_verdict(errors: dict[str, float], more: dict[str, float], tolerance: float, reference: str) -> bool:
    """Prints the table and the verdict; says whether the model agrees."""
    bad = [name for name, value in errors.items() if not value <= tolerance]
    for name, value in errors.items():
        print(f"{name:>16}  {value:.1e}" + ("  <-- differs" if name in bad else ""))
    for name, value in more.items():
        print(f"{name:>16}  {value:.3g}")
    if bad:
        print(
            f"NOT the same as {reference}: first in {bad[0]}, where the error is {errors[bad[0]]:.1e} (allowed {tolerance:.0e})"
        )
    else:
        print(f"computed as by {reference}: largest error {max(errors.values()):.1e} (allowed {tolerance:.0e})")
    return not bad


if __name__ == "__main__":
    app.run(main)
