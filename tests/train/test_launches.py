"""Every way to start a run that configs/ and README show, really launched on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# What a SLURM cluster has, on one machine: two nodes, each of which runs what srun is given.
SRUN = """#!/usr/bin/env bash
shift
for node in 0 1; do SLURM_NODEID=$node SLURM_PROCID=$node "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SCONTROL = """#!/usr/bin/env bash
printf '127.0.0.1\n127.0.0.2\n'
"""


@pytest.fixture
def run_file(make_config, tmp_path) -> Path:
    """A run of one step that two processes can share."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(make_config(max_steps=1, batches_per_step=2).model_dump(mode="json")))
    return file


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def finish(commands: list[list[str]], folder: Path, environment: dict[str, str] = ENVIRONMENT) -> None:
    """Run the commands together; each must succeed, and the run must have saved its step."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = [subprocess.Popen(command, env=environment, cwd=ROOT, **streams) for command in commands]
    output = [run.communicate()[0] for run in runs]
    assert not any(run.returncode for run in runs), "\n".join(text[-4000:] for text in output)
    assert (folder / "run/checkpoints/step_00000001/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["single", "zero1", "zero2", "zero3", "zero2_two_nodes"])
def test_every_accelerate_preset_that_runs_on_cpus(preset, run_file, tmp_path):
    """Two machines are two launches here. `ddp` needs GPUs: on CPUs accelerate starts one process."""
    nodes = 2 if preset.endswith("two_nodes") else 1
    base = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{preset}.yaml"]
    base += ["--num_processes", "1" if preset == "single" else "2", "--main_process_port", free_port()]
    train = ["-m", "train", "--config", str(run_file)]
    finish([[*base, "--machine_rank", str(rank), *train] for rank in range(nodes)], tmp_path)


@pytest.mark.slow
def test_the_deepspeed_launcher_with_a_hostfile(run_file, tmp_path):
    hosts = tmp_path / "hostfile"
    hosts.write_text("localhost slots=2\n")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"]
    launcher += ["--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", free_port(), "--module"]
    preset = "deepspeed=configs/deepspeed/zero2.json"
    finish([[*launcher, "train", "--config", str(run_file), preset]], tmp_path)


@pytest.mark.slow
def test_the_slurm_script(run_file, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    job |= {"PATH": f"{tools}:{os.environ['PATH']}", "PROCESSES_PER_NODE": "1", "MASTER_PORT": free_port()}
    finish([["bash", "configs/slurm/train.sbatch", "--config", str(run_file)]], tmp_path, ENVIRONMENT | job)
