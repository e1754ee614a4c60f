"""The blocks on two processes: gradients and statistics are those of one process with both batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kitsattn.blocks.aspp import ASPP

SCRIPT = """
import sys
import torch
from torch import distributed, nn
from kitsattn.blocks.aspp import ASPP
from kitsattn.blocks.attention import SelfAttention
from kitsattn.precision import to_device

rank, folder, seed = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.manual_seed(seed)
model = nn.Sequential(ASPP(64, 64, (2, 5)), SelfAttention(64, 16)).train()
nn.init.constant_(model[1].gate, 0.5)
model = to_device(nn.SyncBatchNorm.convert_sync_batchnorm(model), torch.device("cpu"))
# DDP asks for GPUs where it sees SyncBatchNorm, whose own forward pass needs them; the blocks use its parameters only.
nn.SyncBatchNorm._specify_ddp_gpu_num = lambda *_: None
nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None
parallel = nn.parallel.DistributedDataParallel(model)
x = torch.randn(5, 64, 4, 3, generator=torch.Generator().manual_seed(1))
mine = x[:3] if rank == 0 else x[3:]
# DDP takes the mean over processes, the loss is a sum over images: twice as much.
(2 * parallel(mine).square().sum()).backward()
if rank == 0:
    from safetensors.torch import save_file
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    results = {**gradients, **dict(model.named_buffers())}
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, f"{folder}/result.safetensors")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("path", ["fused", "reference"])
def test_two_processes_normalise_as_one(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SyncBatchNorm, batches of 3 and 2 images on two processes train as 5 images on one."""
    monkeypatch.setenv("KITSATTN_KERNELS", path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path), "0"], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors

    from safetensors.torch import load_file

    from kitsattn.blocks.attention import SelfAttention

    monkeypatch.setenv("KITSATTN_KERNELS", "reference")
    torch.manual_seed(0)
    model = nn.Sequential(ASPP(64, 64, (2, 5)), SelfAttention(64, 16)).train()
    attention = model[1]
    assert isinstance(attention, SelfAttention)
    nn.init.constant_(attention.gate, 0.5)
    model = model.double()
    model(torch.randn(5, 64, 4, 3, generator=torch.Generator().manual_seed(1)).double()).square().sum().backward()
    got = load_file(tmp_path / "result.safetensors")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        error = (got[name] - parameter.grad).norm() / parameter.grad.norm()
        # Five images behind the pooled branch's statistics: its gradients are small differences.
        assert error < 1e-4, name
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(got[name].double(), buffer.double(), rtol=1e-5, atol=1e-5)


def test_one_image_is_refused_where_nobody_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synchronised normalisation without other processes has one value a channel in the pooled branch."""
    monkeypatch.setenv("KITSATTN_KERNELS", "fused")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    alone = nn.SyncBatchNorm.convert_sync_batchnorm(ASPP(64, 64, (2,)))
    with pytest.raises(ValueError, match="one image a batch: use a batch size of 2 or more"):
        alone.train()(torch.randn(1, 64, 4, 3))
