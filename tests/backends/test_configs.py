"""Each file of configs/accelerate is launched as users launch it, and trains as one process does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import Tensor

from tests.backends.launches import ROOT, SLOW
from tests.workers.configured import METHOD, alone

FOLDER = ROOT / "configs" / "accelerate"
NAMES = ("cpu", "ddp", "fsdp2", "hsdp", "multinode", "zero1", "zero2", "zero3")
ON_CPU = ["ddp", "zero2", *(pytest.param(name, marks=SLOW) for name in ("cpu", "zero1", "zero3", "multinode"))]
ON_GPU = ("ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3")


def file(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def launch(name: str, folder: Path, env: dict[str, str], *options: str) -> None:
    """Run the worker under a configuration on as many machines as it has, all of them this one."""
    nodes: list[list[str]] = [[]]
    if name == "multinode":
        meeting = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
        nodes = [["--machine_rank", str(rank), *meeting] for rank in range(2)]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file(name)), *options]
    worker = ["-m", "tests.workers.configured", name, str(folder)]
    logs = [(folder / f"{name}-{i}.log").open("w+") for i in range(len(nodes))]
    launched = [
        subprocess.Popen([*start, *node, *worker], cwd=ROOT, env={**os.environ, **env}, stdout=log, stderr=log)
        for node, log in zip(nodes, logs, strict=True)
    ]
    end = time.monotonic() + 300
    try:
        codes = [process.wait(end - time.monotonic()) for process in launched]
    finally:
        for process in launched:
            process.kill()
    for log in logs:
        log.seek(0)
    assert codes == [0] * len(nodes), "\n".join(log.read()[-8000:] for log in logs)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The weights that each rank ended with on the CPU, in the loop and in the Trainer; each file is launched once."""
    folder = tmp_path_factory.mktemp("configs")

    @cache
    def launched(name: str) -> list[dict[str, Tensor]]:
        env = {"CUDA_VISIBLE_DEVICES": ""}
        if name.startswith("zero"):
            env["DS_ACCELERATOR"] = "cpu"
        elif name != "cpu":
            env["ACCELERATE_USE_CPU"] = "true"
        launch(name, folder, env, *([] if name == "cpu" else ["--num_processes", "2"]))
        return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(1 if name == "cpu" else 2)]

    return launched


@pytest.mark.parametrize("name", ON_CPU)
def test_on_the_cpu(name: str, found: Any) -> None:
    """DistributedDataParallel or the ZeRO stage is in force, and all ranks end where one process ends on their data."""
    ranks = found(name)
    expected = alone(len(ranks), METHOD)
    assert float((expected - alone(len(ranks), None)).abs().max()) > 1e-2, "the method must matter"
    gaps = [{way: float((weights - expected).abs().max()) for way, weights in rank.items()} for rank in ranks]
    assert all(gap <= 1e-6 for rank in gaps for gap in rank.values()), gaps
    assert all(set(rank) == {"loop", "trainer"} for rank in ranks)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ON_GPU)
def test_on_gpus(name: str, tmp_path: Path) -> None:
    """DistributedDataParallel, DTensors on their mesh, or the ZeRO stage is in force with one rank per GPU."""
    ranks, needed = torch.cuda.device_count(), 4 if name == "hsdp" else 1
    if ranks < needed:
        pytest.skip(f"{name}.yaml needs {needed} CUDA device{'s' * (needed > 1)}, and there are {ranks}")
    options = ["--num_processes", str(4 if name == "hsdp" else ranks)]
    if name == "hsdp":
        options += ["--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2"]
    launch(name, tmp_path, {}, *options)
    ranks = int(options[1])
    expected = alone(ranks, METHOD)
    for rank in range(ranks):
        for way, weights in torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True).items():
            assert float((weights - expected).abs().max()) <= 1e-5, (rank, way)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_known(name: str) -> None:
    """accelerate's own loader takes the file, and its launcher has an option for each key of each section: it passes over
    others without a word."""
    config = load_config_from_file(str(file(name)))
    options = vars(launch_command_parser().parse_args(["train.py"]))
    sections = {key: x for key, x in yaml.safe_load(file(name).read_text()).items() if isinstance(x, dict)}
    assert set(sections) == {
        DistributedType.FSDP: {"fsdp_config"} | ({"parallelism_config"} if name == "hsdp" else set()),
        DistributedType.DEEPSPEED: {"deepspeed_config"},
    }.get(config.distributed_type, set())
    assert [key for keys in sections.values() for key in keys if key not in options] == []
    assert config.mixed_precision == "no"


def test_there_is_a_test_for_every_file() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == list(NAMES)


@pytest.mark.parametrize(("name", "sizes"), [("fsdp2", (1, 1)), ("hsdp", (2, 4))])
def test_what_the_sharded_files_tell_the_processes(
    name: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher's environment makes accelerate build FSDP of version 2, on the mesh that the file names."""
    for key in [key for key in os.environ if key.startswith(("FSDP_", "PARALLELISM_", "ACCELERATE_"))]:
        monkeypatch.delenv(key)
    parsed = launch_command_parser().parse_args(["--config_file", str(file(name)), "train.py"])
    args, _, _ = _validate_launch_command(parsed)
    assert args.use_fsdp
    for key, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(key, value)
    plugin, mesh = FullyShardedDataParallelPlugin(), ParallelismConfig()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert (mesh.dp_replicate_size, mesh.dp_shard_size) == sizes
    assert name == "fsdp2" or mesh.total_size == args.num_processes
