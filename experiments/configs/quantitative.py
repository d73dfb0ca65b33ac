"""Quantitative reasoning: a weak teacher solves competition problems, a strong student learns from the trusted answers.

Command:  python -m experiments.main --config=experiments/configs/quantitative.py:qwen3_1.7b_14b,source=omni
          python -m experiments.main --config=experiments/configs/quantitative.py:smollm2_135m_360m --config.tasks.root=DATA
Device:   an accelerator for the Qwen3 pairs; `smollm2_135m_360m` (GSM8K to SVAMP) runs on a CPU in hours.
Needs:    pip install 'w2s_jax[math]', for answers that are compared as mathematics.
Expected: of the trust function with MATH / Omni-MATH as the source (arXiv 2606.01000, table of trust quality): AUC .84 / .83,
          ECE .14 / .11, Brier .17 / .13, purity .95 / .69; best AIME accuracy of a student 27.9. Not reproduced here.

Source = MATH or Omni-MATH, target = AIME 1983-2021, test = AIME 2022-2025. The paper names the teachers Qwen3-1.7B and Gemma
3 1B and says that students are Qwen models; which of them, number of labels, rates, rank and lengths are our proposals. So is
the set-up `gsm8k`, for models that solve no competition problems.
"""

from experiments.configs import base

PAIRS = {  # name: (teacher, student, set-up), hub ids
    "qwen3_1.7b_14b": ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-14B", "math"),
    "qwen3_1.7b_4b": ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "math"),
    "gemma3_1b_qwen3_14b": ("google/gemma-3-1b-it", "Qwen/Qwen3-14B", "math"),
    "gemma3_1b_qwen3_1.7b": ("google/gemma-3-1b-it", "Qwen/Qwen3-1.7B", "math"),
    "smollm2_135m_360m": ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-360M", "gsm8k"),
}
SET_UPS = {  # name: (source, target, test)
    "math": ("math:train", "aime:train", "aime:test"),
    "omni": ("omni_math_rule:test", "aime:train", "aime:test"),
    "gsm8k": ("gsm8k:train", "svamp:test", "gsm8k:test"),
}


def get_config(arg=None):
    """`arg`: a pair's name, `source=math|omni|gsm8k` (the set-up), `label=each|majority`, `seeds=K`."""
    given = base.words(arg, variant="qwen3_1.7b_14b", source="", label="each", seeds=1)
    c = base.get_config()
    c.name = "quantitative"
    c.domain = "quantitative reasoning"
    c.seeds = tuple(range(given["seeds"]))
    c.teacher.model, c.student.model, set_up = base.choose("pair", given["variant"], PAIRS)
    set_up = given["source"] or set_up
    c.tasks = base.ConfigDict({"name": "math", **base.keywords("task", "math")})
    c.tasks.source, c.tasks.target, c.tasks.test = ((entry,) for entry in base.choose("source", set_up, SET_UPS))
    c.student.objective = "grpo"  # the paper's: the reward is agreement with the trusted answer
    c.student.grpo.update(group_size=8, questions=8, beta=0.02)
    c.student.training.update(lr=1e-5, schedule="constant", warmup_frac=0.0, checkpoint_every=5)
    if set_up == "gsm8k":
        small(c)
    else:
        large(c)
    c.teacher.label = given["label"]
    if given["label"] == "majority":
        c.teacher.update(num_samples=8, temperature=0.7)
    c.methods = ("naive", "confidence", "ntf", *base.CONTROLS, "gold")
    c.analysis.coherence = 64
    return c


def large(c):
    """Instruction-tuned models on competition problems: asked in their chat format, long answers."""
    for section in (c.teacher, c.student):
        section.update(style="boxed", chat=True, max_new_tokens=2048)
        section.shape = base.shape(row_length=3072, batch_rows=8, max_segments=8)
    c.student.grpo.max_new_tokens = 2048
    c.student.training.shape = base.shape(row_length=3072, batch_rows=8, max_segments=8)
    c.tasks.max_source = 3000
    c.select.n = 100


def small(c):
    """Base models on word problems: shown how, short answers."""
    for section in (c.teacher, c.student):
        # A base model goes on with questions of its own.
        section.update(style="worked", shots=4, max_new_tokens=256, stop_texts=("\nQuestion:",))
        section.shape = base.shape(row_length=1536, batch_rows=4, max_segments=8)
    c.student.grpo.max_new_tokens = 256
    c.student.training.shape = base.shape(row_length=1536, batch_rows=4, max_segments=8)
    c.tasks.update(max_source=1000, max_test=500)
    c.select.n = 300
