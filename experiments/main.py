"""Runs an experiment: `python -m experiments.main [--config=experiments/configs/NAME.py[:ARG]] [--config.KEY=VALUE ...]`.

Without flags it runs the quickstart; a config whose `chain.models` name students runs a chain. A finished run is served from
its store; a killed one continues where it stopped.
Several processes that are started with --coordinator, --num_processes and --process_id (or --distributed=auto) share one run;
`launch/` starts them.
"""

import ast
import collections
import dataclasses
import difflib
import importlib.util
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

FLAGS = flags.FLAGS
SECONDS_TO_SPEAK = 2.0
SECONDS_WORTH_KEEPING = 0.2  # of compilation; JAX's own limit of 1.0 would leave most programs of small models out of the cache
QUICKSTART = os.path.join(os.path.dirname(__file__), "configs", "quickstart.py")
# No default here: the library would read it, with every override on the command line, while this file is being imported.
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, its argument after a colon; by default the quickstart.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the report and the metrics; by default runs/<config name>.")
STORE = flags.DEFINE_string("store", None, "Folder of the artefacts, may be shared; by default <workdir>/store.")
BACKEND = flags.DEFINE_enum("require_backend", None, ["cpu", "gpu", "tpu"], "Refuse to run on anything else.")
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")
DISTRIBUTED = flags.DEFINE_enum("distributed", "off", ["off", "auto"], "auto: JAX finds the other processes (TPU, Slurm).")
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, where several processes share the run.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.")
LOCAL_DEVICE = flags.DEFINE_integer("local_device", None, "With --coordinator: the one GPU of this host to use, else all.")
WANDB = flags.DEFINE_bool("wandb", False, "Log to Weights & Biases too (pip install 'w2s_jax[wandb]').")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; settings are written --config.key=value")
    workdir, store = folders(CONFIG.value)
    guard(lambda: run(CONFIG.value, workdir=workdir, store=store, wandb=WANDB.value))


def guard(work: Callable[[], object]) -> None:
    """Joins the other processes, if any, checks the back end and does the work; what a user can mend is one message."""
    several = DISTRIBUTED.value == "auto" or bool(COORDINATOR.value)
    quiet_libraries()
    try:
        if several:
            from w2s_jax import processes

            keep_table_apart()
            processes.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, LOCAL_DEVICE.value)
        check_backend(BACKEND.value)
        work()
    except (Exception, KeyboardInterrupt) as error:
        plain = isinstance(error, ValueError | OSError) and not TRACEBACK.value
        message = f"error: {error}\n(--traceback shows where)"
        if several:
            leave(message if plain else traceback.format_exc())
        if plain:
            sys.exit(message)
        raise


def keep_table_apart() -> None:
    """What libraries below Python write to standard output (gloo greets its peers there) goes to standard error instead."""
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def leave(message: str) -> None:
    """Ends one of several processes: at once, as an orderly end would wait for the others, which wait for this one."""
    print(message, file=sys.stderr, flush=True)
    if PROCESS_ID.value == 0:
        time.sleep(SECONDS_TO_SPEAK)  # its end ends the others, who may have found the same fault and want to say so
    os._exit(1)


def check_backend(wanted: str | None) -> None:
    """Refuses to compute elsewhere than asked.

    Raises:
        ValueError: JAX found other devices, or none.
    """
    import jax

    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise ValueError(f"JAX found no device to compute on: {error}") from error
    if wanted and found != wanted:
        raise ValueError(
            f"--require_backend={wanted}, but JAX found {found} only; python -m experiments.doctor "
            f"--require_backend={wanted} says what to install, or drop the flag"
        )


def run(config: ConfigDict, *, workdir: str, store: str, wandb: bool = False, tell: Callable[[str], None] = print) -> str:
    """Runs every seed of a config and writes the report; returns the report's folder. With several processes the first writes.

    Args:
        config: of the run.
        workdir, store: folders.
        wandb: log to Weights & Biases too.
        tell: hears the table.

    Raises:
        ValueError: whatever is wrong with the config, its data, its models or its folders, in one message.
    """
    import jax

    from experiments.writer import Writer
    from w2s_jax import chain, chain_page, costs, gain_page, mechanism_page, pipeline, processes, recovery, report
    from w2s_jax.analysis import gains, mechanisms
    from w2s_jax.run import Run, find_model
    from w2s_jax.settings import check, refuse_rows, spelled

    refuse_study(config)
    began, compiled = time.monotonic(), count_compilations()
    artefacts = open_store(store, workdir)
    hosts = f" in {jax.process_count()} processes" if processes.several() else ""
    devices = f"{jax.device_count()} {jax.default_backend()} device(s){hosts}"
    artefacts.log(f"{config.name}: {devices}, jax {jax.__version__}, workdir {workdir}")
    writer = Writer(workdir, wandb=start_wandb(config) if wandb else None) if processes.is_first() else None
    trials: list[recovery.Trial] = []
    chains: list[chain.Chain] = []
    explained, predicted, spent = mechanisms.Mechanisms(), gains.Gains(), costs.Costs()
    rows_of_config = check(config)
    if config.chain.models:
        chain.refuse(config)
        artefacts.log("chain: the analysis section is of single links, a chain is not looked at")
    for seed in config.seeds:
        one = Run(config, seed, artefacts, writer or keep_silent, prefix=f"seed {seed} " if len(config.seeds) > 1 else "")
        refuse_rows(rows_of_config, one.task.interface)  # this, or a bad row of the task, is said before a model is fetched
        if config.chain.models:
            chains.append(chain.run_chain(one))
            trials += chains[-1].trials
            spent += chains[-1].spent
        else:
            if seed == config.seeds[0]:
                mechanisms.prepare(one)
                gains.prepare(one)
            teacher, student = (find_model(one, word) for word in (config.teacher.model, config.student.model))
            linked = pipeline.link(one, teacher, student)
            trials.append(linked.trial)
            written = processes.from_first(lambda: read_curves(workdir, (costs.LENGTHS,)))
            spent += costs.count(one, teacher, student, linked, written=written)
            predicted = gains.joined(predicted, gains.measure(one, teacher, student, linked))
            if seed == config.seeds[-1]:
                explained = mechanisms.measure(one, linked.choices, student)
    folder = os.path.join(workdir, "report")
    if writer is None:
        processes.barrier("report written")
        return folder
    writer.close()
    artefacts.forget_unused_labels()
    rows = [row for trial in trials for row in recovery.recover(trial)]
    summary = recovery.summarise(trials, margin=config.recover.margin, alpha=config.recover.alpha)
    last, prefix = trials[-1], one.prefix
    if chains:
        final = chains[-1].own[-1]
        last, prefix = final.trial, f"{one.prefix}gen {final.number} "
    told = chain_page.Snowball(chain.snowball(chains, summary), chain.plain(chains)) if chains else None
    shown = {"rows": rows, "summary": summary, "audits": last.audits, "certificates": last.certificates, "snowball": told}
    shown["learning"] = read_learning(workdir, store, prefix, last.trained)
    if explained.easy_first:
        explained = dataclasses.replace(explained, learnt=read_learnt(workdir, prefix, last.trained))
    shown |= {"mechanisms": explained, "gains": predicted, "costs": spent}
    report.write(folder, **shown, context={"config": spelled(config)})
    gain_page.write(folder, predicted, {"domain": last.domain, "teacher": last.teacher, "student": last.student})
    link_results(workdir, store)
    tell(report.terminal_table(rows, summary) if told is None else chain_page.terminal_table(told))
    for line in (*mechanism_page.terminal_lines(explained), *gain_page.terminal_lines(predicted)):
        tell(line)
    programs = f"{compiled['asked'] - compiled['found']} programs compiled, {compiled['found']} taken from the cache"
    say(f"report: {folder}/index.html ({time.monotonic() - began:.0f} s; {programs})")
    processes.barrier("report written")
    return folder


def refuse_study(config: ConfigDict) -> None:
    """Makes sure that a config is one of runs.

    Raises:
        ValueError: it is one of a study of theory.
    """
    if "methods" not in config:
        raise ValueError(
            f"config {config.name!r} has no `methods`, so it is of no run: a study of theory is started with "
            "python -m experiments.theory --config=..."
        )


def read_learning(workdir: str, store: str, prefix: str, methods: Iterable[str]) -> dict[str, Any]:
    """How those students of a seed that learnt from what they wrote did so: texts, and curves where this workdir has them."""
    from etils import epath

    from w2s_jax import report, teaching

    logged, found = read_curves(workdir, report.CURVES), {}
    for method, artefact in taught(workdir, prefix, methods).items():
        texts = epath.Path(store) / artefact / teaching.COMPLETIONS
        if texts.exists():
            found[method] = report.Learning(logged.get(artefact, {}), json.loads(texts.read_text()))
    return found


def read_learnt(workdir: str, prefix: str, methods: Iterable[str]) -> dict[str, Any]:
    """The area under each student's training curve, of those that were taught in this workdir."""
    from w2s_jax.analysis import easy_first

    logged = read_curves(workdir, ("reward", "loss"))
    students = taught(workdir, prefix, methods)
    found = {method: easy_first.learnt(logged.get(artefact, {})) for method, artefact in students.items()}
    return {method: one for method, one in found.items() if one}


def taught(workdir: str, prefix: str, methods: Iterable[str]) -> dict[str, str]:
    """Method -> the artefact of its student in this workdir's last run, of a seed."""
    from etils import epath

    labels = json.loads((epath.Path(workdir) / "runs.json").read_text())
    named = {method: labels.get(f"{prefix}teach {method}", "") for method in methods}
    return {method: artefact for method, artefact in named.items() if artefact}


def read_curves(workdir: str, names: Iterable[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Artefact -> name -> (step, value) of what this workdir's metrics.jsonl has of those names."""
    from etils import epath

    from experiments import writer

    metrics = epath.Path(workdir) / "metrics.jsonl"
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for _, line in writer.whole_lines(metrics) if metrics.exists() else ():
        curves = found.setdefault(line.get("artefact", ""), {})
        for name in names:
            if name in line:
                curves.setdefault(name, []).append((line["step"], line[name]))
    return found


def folders(config: ConfigDict) -> tuple[str, str]:
    """The workdir and the store of the flags, or their defaults."""
    workdir = WORKDIR.value or os.path.join("runs", config.name)
    return workdir, STORE.value or os.path.join(workdir, "store")


def quiet_libraries() -> None:
    """Libraries (orbax) tell all they do; unless --verbosity is given, only warnings are shown."""
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def open_store(store: str, workdir: str):
    """The store, with compiled programs kept beside its artefacts (a set JAX_COMPILATION_CACHE_DIR wins)."""
    import jax

    from w2s_jax import processes
    from w2s_jax.store import Store

    opened = Store(store, workdir=workdir, log=say if processes.is_first() else keep_silent)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(os.path.join(store, "xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    return opened


def count_compilations() -> collections.Counter:
    """A counter of the programs that are "asked" for from now on, and of those that are "found" in the persistent cache."""
    import jax

    counter: collections.Counter = collections.Counter()
    names = {"compile_requests_use_cache": "asked", "cache_hits": "found"}

    def listen(event: str, **_) -> None:
        if event.startswith("/jax/compilation_cache/") and (name := names.get(event.rpartition("/")[2])):
            counter[name] += 1

    jax.monitoring.register_event_listener(listen)
    return counter


def say(line: str) -> None:
    """Progress goes to standard error, the table alone to standard output."""
    print(line, file=sys.stderr, flush=True)


def keep_silent(*said) -> None:
    """What the processes but the first do with log lines and metrics."""


def link_results(workdir: str, store: str) -> None:
    """Makes what outlives the run easy to find: links <workdir>/{student,adapter,trust}/<method>."""
    if "://" in workdir or "://" in store:
        return  # object stores have no links; runs.json names the folders
    with open(os.path.join(workdir, "runs.json"), encoding="utf-8") as file:
        artefacts = json.load(file)
    for stage, kind, inside in (
        ("teach", "student", "model"),
        ("teach", "adapter", "adapter"),
        ("calibrate", "trust", "trust"),
    ):
        folder = os.path.join(workdir, kind)
        for old in os.listdir(folder) if os.path.isdir(folder) else ():
            if os.path.islink(os.path.join(folder, old)):
                os.unlink(os.path.join(folder, old))
        for label, artefact in artefacts.items():
            *seed, made_by, method = label.split(" ")
            if made_by == stage and os.path.isdir(os.path.join(store, artefact, inside)):
                target = os.path.relpath(os.path.join(store, artefact, inside), folder)
                os.makedirs(folder, exist_ok=True)
                place = re.sub(r" (\d)", r"\1", " ".join(seed)).split()  # "seed 3 gen 2" -> seed3, gen2
                os.symlink(target, os.path.join(folder, "_".join([*place, method])))


def start_wandb(config: ConfigDict):
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb needs the package: pip install 'w2s_jax[wandb]', or drop the flag") from None
    return wandb.init(project="w2s_jax", name=config.name, config=config.to_dict())


# ---- Flags -----------------------------------------------------------------------------------------------------------


def parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with one is said in one line, with the nearest word that exists."""
    given = [k for k, flag in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", flag)]
    if not given:
        argv = [argv[0], f"--config={QUICKSTART}", *argv[1:]]
        sys.argv = argv  # where config_flags looks for overrides
    try:
        if not {"--help", "-help", "--helpfull", "--helpshort"} & set(argv):
            check_config_flags(argv)
        return FLAGS(argv)
    except (ValueError, KeyError, AttributeError, TypeError, flags.Error) as error:
        sys.exit(f"error: {error}")


def check_config_flags(argv: list[str]) -> None:
    """Makes sure that the config loads and has every key that is set.

    Raises:
        ValueError: no such file, an argument it does not know, or a key it does not have.
    """
    words = [word for flag in argv[1:] for word in flag.split("=", 1)]
    at = max(k for k, word in enumerate(words) if word in ("--config", "-config"))
    config = load_config(words[at + 1] if at + 1 < len(words) else "")
    for flag in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", flag)
        if match and (problem := wrong_key(config, match.group(1))):
            raise ValueError(f"{flag}: {problem}")


def load_config(path_and_arg: str) -> ConfigDict:
    """The config of a file, `path.py` or `path.py:arg`."""
    path, _, arg = path_and_arg.partition(":")
    if not os.path.isfile(path):
        folder = os.path.join(os.path.dirname(__file__), "configs")
        known = sorted(name for name in os.listdir(folder) if name.endswith(".py") and not name.startswith("_"))
        raise ValueError(f"--config={path_and_arg}: there is no file {path!r}; experiments/configs has {', '.join(known)}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()


def wrong_key(config: ConfigDict, path: str) -> str:
    """What is wrong with a dotted key, "" if it exists."""
    node, walked = config, "config"
    for word in path.split("."):
        if not isinstance(node, ConfigDict):
            return f"{walked} is a value, it has no keys"
        if word not in node:
            near = difflib.get_close_matches(word, node.keys(), 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            return f"{walked} has no key {word!r}{hint} (its keys: {', '.join(node.keys())})"
        node, walked = node[word], f"{walked}.{word}"
    return ""


def set_key(config: ConfigDict, path: str, text: str) -> None:
    """Sets a dotted key to the value that a text says, of the type that the key has.

    Raises:
        ValueError: there is no such key, it is a section, or the text is no value of its type.
    """
    if problem := wrong_key(config, path):
        raise ValueError(problem)
    *sections, last = path.split(".")
    node = config
    for word in sections:
        node = node[word]
    kind = node.get_type(last)
    if issubclass(kind, ConfigDict):
        raise ValueError(f"config.{path} is a section; name one of its keys: {', '.join(node[last].keys())}")
    try:
        if text == "None" and node[last] is None:
            value = None
        elif kind is bool:
            value = {"true": True, "false": False}[text.lower()]
        else:
            value = kind(text) if kind in (str, int, float) else ast.literal_eval(text)
        node[last] = value
    except (ValueError, SyntaxError, TypeError, KeyError):
        raise ValueError(f"config.{path}={text}: {text!r} is no {kind.__name__}; correct the value") from None


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
