"""All keys and their defaults, in the order of the stages. A config starts from here and only edits.

Command:  none of its own; `python -m experiments.main --config=experiments/configs/<name>.py[:arg] [--config.key=value ...]`

`arg` is `word|key=value[,...]`: a config reads it with `words(arg, ...)`. Every default that a paper does not give is our
proposal, see the modules. Optional numbers are placeholders, so that a flag can set them.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from w2s_jax import plugins

CONTROLS = ("shuffled", "flipped", "same_purity", "difficulty_matched")
"""Rows that a trust function must beat, beside `naive`: the configs of the paper's experiments run them all."""
TRUST = (
    "entropy", "margin", "self_assessment", "self_consistency", "paraphrase", "committee", "reward_model", "knn", "logistic",
)  # fmt: skip

OVER_OPTIONS = ("soft", "auxiliary_confidence", "adaptive", "confidence_weighted", "raven")
"""Student objectives over the options of a question, see w2s_jax/student/options.py."""


def get_config(arg: str | None = None) -> ConfigDict:
    """The defaults. `arg` must be empty."""
    words(arg)
    c = ConfigDict()
    c.name = "base"
    c.domain = ""  # what the tables call it
    c.seeds = (0,)  # one whole run for each

    c.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})

    # 0 pretrain: models of one's own, trained from scratch; a section for each `model="pretrain:<section>"`
    c.pretrain = ConfigDict()

    # 1 ask
    c.tasks = ConfigDict({"name": "choice", **keywords("task", "choice")})

    # 2 answer: the teacher
    c.teacher = model("", style="letter")
    c.teacher.label = "each"  # free generation: each sample is a label, or the "majority" of a question's samples

    # 3 observe
    c.observe = ConfigDict()
    c.observe.layers = (-1,)  # 0..M as in transformers, -1 = after the final norm, "prenorm" = before it
    c.observe.token = "content"  # last content token; "eos" = the stop token, "prompt" = the last of the question

    # 4 calibrate, 5 trust: a section of keywords for each trust function; `name` is the one that the row `ntf` uses
    c.trust = ConfigDict()
    c.trust.name = "neural"
    c.trust.from_ = ""  # folder of a fitted trust function to use again, instead of fitting one
    for word in ("neural", "confidence", "controls", *TRUST):
        c.trust[word] = ConfigDict(keywords("trust", word))
    c.trust.ensemble = ConfigDict({**keywords("trust", "ensemble"), **keywords("trust", "neural")})  # of neural heads

    # 5 relabel: for rows that name one, see w2s_jax/relabelling.py
    c.relabel = ConfigDict()
    c.relabel.self_known = knowing()
    c.relabel.smoothed = smoothing()
    c.relabel.selective = ConfigDict({**knowing(), **smoothing()})
    c.relabel.selective.trust_threshold = 0.5  # from which trust score on a weak label is taken, where the student knows none
    c.relabel.selective.smoothed_threshold = 0.5  # from which confidence on a smoothed one is, else; the rest is dropped
    # Further teachers beside teacher.model, as a model is named elsewhere; see w2s_jax/teachers.py
    c.relabel.boosted = ConfigDict({"models": ()})
    c.relabel.boosted.order = "least_error"  # whose turn it is in boosting: least_error, given
    c.relabel.boosted.free_options = 10  # with free answers: better than chance = right more often than 1 in so many
    c.relabel.committee_vote = ConfigDict({"models": ()})
    c.relabel.experts = ConfigDict({"models": ()})

    # 6 select
    c.select = ConfigDict()
    c.select.rule = "top_n"  # top_n, fraction, threshold, weights, balanced, certified
    c.select.n = 1000  # of top_n and balanced
    c.select.fraction = 0.5
    c.select.threshold = 0.9
    c.select.balance = "answer"  # classes of `balanced`: the place of the answered option, or a key of the questions' meta
    # certified: see w2s_jax/certificate.py; with probability 1 - delta at least `purity` of the labels are right
    c.select.purity = 0.9
    c.select.delta = 0.05
    c.select.bound = "clopper_pearson"  # hoeffding, clopper_pearson
    c.select.pool = "population"  # population, finite
    c.select.calibration_frac = 0.25  # share of the source held back for it
    c.select.grid = (*(i / 20 for i in range(20)), 0.975, 0.99)  # thresholds to choose from

    # 7 teach: the student
    c.student = model("", style="letter")
    c.student.quantise = ""  # "int8" or "nf4": the frozen base is taught in fewer bits (LoRA; pip install 'w2s_jax[quant]')
    c.student.objective = "sft"
    c.student.soft_labels = False  # teach the teacher's probabilities of the options; for OVER_OPTIONS, which learn from them
    for word in ("sft", "grpo", *OVER_OPTIONS):
        c.student[word] = ConfigDict(keywords("objective", word))
    for word in OVER_OPTIONS:  # one value: options are ranked alike when they are learnt and when they are asked for
        c.student[word].normalise = c.student.get_ref("normalise")
    c.student.training = training()

    # The rows of the table: which trust function chooses, and whose labels are taught.
    c.methods = ("naive", "confidence", "ntf", "shuffled", "gold")
    c.method = ConfigDict()
    c.method.naive = row("controls", kind="random")
    c.method.naive_all = row("controls", kind="constant", everything=True)
    c.method.confidence = row("confidence")
    c.method.ntf = row("")
    c.method.ntf_linear = row("neural", head="linear")
    c.method.ntf_layers = row("neural", head="layers")  # of several observe.layers
    c.method.ntf_ensemble = row("ensemble")
    c.method.shuffled = row("controls", kind="shuffled", of="ntf")
    c.method.flipped = row("", flipped=True)
    c.method.same_purity = row("controls", kind="same_purity", of="ntf")
    c.method.difficulty_matched = row("controls", kind="difficulty_matched", of="ntf")
    c.method.gold = row("controls", kind="random", labels="gold")
    c.method.gold_all = row("controls", kind="constant", everything=True, labels="gold")
    c.method.gold_on_ntf = row("", labels="gold")
    c.method.oracle = row("controls", kind="oracle")
    c.method.entropy = row("entropy")
    c.method.margin = row("margin")
    c.method.icl_confidence = row("confidence", shots=4)
    c.method.p_true = row("self_assessment", ask="p_true")
    c.method.verbalised = row("self_assessment", ask="verbalised")
    c.method.self_consistency = row("self_consistency")
    c.method.paraphrase = row("paraphrase")
    c.method.committee = row("committee")
    c.method.reward_model = row("reward_model")
    c.method.knn = row("knn")
    c.method.logistic = row("logistic")
    c.method.selective = row("", relabel="selective")
    c.method.self_known = row("", relabel="self_known")
    c.method.smoothed = row("", relabel="smoothed")
    c.method.boosted = row("controls", kind="constant", relabel="boosted")
    c.method.committee_vote = row("controls", kind="constant", relabel="committee_vote")
    c.method.experts = row("controls", kind="constant", relabel="experts")

    # 9 recover
    c.recover = ConfigDict()
    c.recover.margin = 0.02  # accuracy that counts as no loss in the equivalence test
    c.recover.alpha = 0.05

    # 10 audit, of a single link once its students are stored: why does trust work? See w2s_jax/analysis/mechanisms.py
    c.analysis = ConfigDict()
    c.analysis.easy_first = True  # trust beside how hard the questions are; needs no model
    c.analysis.student = False  # also beside -log p of the untaught student: it reads all weak labels once
    c.analysis.judge = ""  # of chosen labels that differ from gold: a model's word; "" = the task's solver, where it has one
    c.analysis.judge_chat = False  # lay the judge's chat template around what it is asked
    c.analysis.coherence = 0  # examples of each lesson whose gradients in the untaught student are compared; 0 = not done
    c.analysis.sketch = 16384  # numbers kept of each gradient: some hundred times as many as examples
    c.analysis.rank = 16  # of the adapters through which they are seen, where student.training.lora_rank is 0

    # What theory predicts beside what came of it, see w2s_jax/analysis/gains.py; all numbers are our proposals.
    c.analysis.gains = 0  # target questions that teacher, untaught and taught students are looked at on; 0 = not done
    c.analysis.ridge = 0.01  # of probes on hidden states, relative to the trace of their kernel
    c.analysis.neighbours = 10  # of the graph on which expansion is counted

    # 11 chain: students of generation 1, 2, ..., each taught by the one before it, the first by teacher.model; () = one link
    c.chain = ConfigDict()
    c.chain.models = ()  # in place of student.model; the student section says how they are asked and taught
    c.chain.follow = "ntf"  # the method whose student becomes the next teacher
    c.chain.controls = ("naive", "gold")  # methods that have a chain of their own beside it
    c.chain.head = "retrain"  # for each new teacher; "reuse" = that of the first one (of trust.name; equal widths)
    c.chain.target = "fresh"  # a slice of the target for each generation; "same" = all of it each time
    c.chain.whole_groups = True  # questions of one group (a passage, a game) stay in one slice
    c.chain.held_back_frac = 0.2  # share of the source that no head is fitted on: the collapse detector reads it
    c.chain.stop = ConfigDict()  # the detector's numbers are our proposals
    c.chain.stop.rules = ("accuracy", "auc", "drift")  # () = never stop
    c.chain.stop.alpha = 0.05  # chance of a false stop by accuracy or auc, each over the whole chain
    c.chain.stop.accuracy_margin = 0.0  # held-back accuracy that a teacher may lose against the best before it
    c.chain.stop.auc_margin = 0.1  # above chance, below which a head is of no use
    c.chain.stop.least = 10  # right and wrong held-back answers that it takes to speak of an AUC
    c.chain.stop.distance = 0.3  # between the scores of two generations (Kolmogorov-Smirnov)
    c.chain.stop.drift = 0.2  # of mean trust in the target beyond the change of held-back accuracy

    c.lock()  # a config that sets a key that is not here is told so; it may add sections of these two
    c.pretrain.unlock()
    c.method.unlock()
    return c


def model(name: str, *, style: str) -> ConfigDict:
    """The section of a model: which one, how it is asked, how it computes."""
    c = ConfigDict()
    c.model = name  # a local directory, a hub id, or "pretrain:<section>"
    c.style = style  # letter, cloze, direct; boxed, worked
    c.chat = False  # lay the model's chat template around the question
    c.shots = 0  # answered questions of the source shown before each question
    c.normalise = "token"  # options of several tokens are ranked by log-probability per "token", per "byte", or "none"
    c.num_samples = 1  # free generation: answers to a question
    c.temperature = 0.0  # 0 = greedy
    c.top_k = 0  # most probable tokens to draw from, 0 = all
    c.top_p = 1.0  # share of the probability to draw from
    c.min_p = 0.0  # leave out tokens below this share of the largest probability
    c.max_new_tokens = 512
    c.stop_texts = ()  # texts that end an answer, beside the model's stop tokens
    c.num_slots = 64  # answers written together
    c.decode_dtype = ""  # of weights, activations and cache while writing; "" = dtype
    # Of the parameters; "bfloat16" halves a teacher, or a student under LoRA (its merged adapters too).
    c.param_dtype = "float32"
    c.dtype = "float32"  # of activations
    c.attention = "auto"  # auto, xla, jax, cudnn, splash, tokamax
    c.remat = "none"  # none, dots, full
    c.shape = shape(row_length=512, batch_rows=4, max_segments=16)  # of a pass without gradients
    return c


def shape(*, row_length: int, batch_rows: int, max_segments: int) -> ConfigDict:
    """The shape of a device batch: tokens of a row, rows of a batch, segments of a row."""
    return ConfigDict({"row_length": row_length, "batch_rows": batch_rows, "max_segments": max_segments})


def training() -> ConfigDict:
    """The section of a training."""
    c = ConfigDict()
    c.epochs = 3.0
    c.accumulation = 1  # micro-batches of a step
    c.lr = 1e-4
    c.schedule = "cosine"  # cosine, linear, constant
    c.warmup_frac = 0.1
    c.optimizer = ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0})
    c.lora_rank = 16  # 0 = train all parameters
    c.lora_alpha = 32.0
    c.lora_targets = ("q", "k", "v", "o", "gate", "up", "down")
    c.checkpoint_every = 200  # steps
    c.shape = shape(row_length=512, batch_rows=4, max_segments=16)  # of a micro-batch
    return c


def knowing() -> ConfigDict:
    """The keywords of P(IK), what the student knows by itself."""
    c = ConfigDict()
    c.layers = (-1,)  # of the student's hidden states at the end of a question, see `observe.layers`
    c.num_samples = 0  # at temperature 1 to each question of the source; 0 = the exact probability of right options
    c.l2 = (1e-3, 1e-2, 1e-1, 1.0)  # penalties to choose from
    c.shares = (0.6, 0.2, 0.2)  # of the source: to fit on; for penalty, calibration and gamma; to report on
    return c


def smoothing() -> ConfigDict:
    """The keywords of smoothing over a graph of the student's embeddings."""
    c = ConfigDict()
    c.layers = (-1,)
    c.nodes = "option"  # option: each option of each question; question: where all questions have the same options
    c.neighbours = 10  # that each point has at least
    c.sigma = 0.0  # width of the weights; 0 = the median distance to a neighbour
    c.alpha = 0.9  # how much neighbours count, 0 to below 1; at 0.5 and below a sure label outvotes all of them
    return c


def pretraining(corpus: str) -> ConfigDict:
    """The section of a small decoder of the Qwen3 architecture that is trained from scratch on a task's corpus."""
    c = ConfigDict()
    c.corpus = corpus
    c.style = "direct"
    c.dtype, c.attention, c.remat = "float32", "auto", "none"
    c.decoder = ConfigDict({"family": "qwen3", "qk_norm": True, "tied": True, "init_std": 0.1})
    c.decoder.update(width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=192)
    c.training = training()
    c.training.lora_rank = 0
    return c


def row(
    trust: str,
    *,
    labels: str = "weak",
    everything: bool = False,
    flipped: bool = False,
    shots: int = -1,
    relabel: str = "",
    **args,
) -> ConfigDict:
    """A row of the table.

    Args:
        trust: the trust function's word, "" = `trust.name`.
        labels: whose answers are taught, "weak" or "gold".
        everything: teach all answered questions, whatever `select` says.
        flipped: fit the trust function on the source's labels turned round, right for wrong.
        shots: demonstrations that the teacher is shown when it labels for this row; -1 = `teacher.shots`.
        relabel: what replaces the teacher's labels before any are selected, a section of `relabel`; "" = nothing.
        **args: keywords of the trust function, over those of its section.
    """
    how = {"labels": labels, "everything": everything, "flipped": flipped, "shots": shots, "relabel": relabel}
    return ConfigDict({"trust": trust, **how, "args": args})


def choose(what: str, word: str, known: dict):
    """The entry of that name.

    Raises:
        ValueError: there is none.
    """
    if word not in known:
        raise ValueError(f"{what} {word!r}: allowed are {', '.join(known)}; change what follows the config's colon")
    return known[word]


def keywords(kind: str, word: str) -> dict:
    """The keywords of a plug-in and their defaults, from its signature; a None becomes a number that a flag can set.

    The task's seed is the run's.
    """
    found = plugins.defaults(kind, word)
    if kind == "task":
        found.pop("seed", None)
    return {name: placeholder(value) if isinstance(value, type) else value for name, value in found.items()}


def words(arg: str | None, **allowed) -> dict:
    """Reads `word|key=value[,...]` after the config's colon; a bare word means `variant=word`.

    >>> words("seeds=5", seeds=1)
    {'seeds': 5}

    Raises:
        ValueError: a key that the config does not know, or a value of another type.
    """
    found = dict(allowed)
    for part in filter(None, (arg or "").split(",")):
        key, _, value = part.partition("=") if "=" in part else ("variant", "", part)
        if key not in allowed:
            raise ValueError(
                f"config argument {part!r}: allowed are {', '.join(f'{k}=...' for k in allowed) or 'none'}; "
                "change what follows the colon"
            )
        try:
            found[key] = type(allowed[key])(value)
        except ValueError:
            raise ValueError(
                f"config argument {part!r}: {value!r} is no {type(allowed[key]).__name__}; change what follows the colon"
            ) from None
    return found
