"""Two processes train one model: DistributedDataParallel and fully_shard, beside torch's layers."""

import pytest
import torch
from torch import func, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

import normwright.torch as nw
from beside_torch import UNIT, normal
from torch_networks import BF16, BOUND, F64, HALF, network, ours_alone, outcome, same, whole

F32 = torch.float32


def parallel(rank, made, mode):
    """Two forward passes, then one backward pass, under DistributedDataParallel: ours and torch's."""
    results = []
    for model in (network(nw) if made == "directly" else network(), network()):
        if not results and made == "converted before":
            nw.convert(model)
        wrapped = nn.parallel.DistributedDataParallel(model.train(mode == "train"))
        if not results:
            ours_alone(nw.convert(wrapped))
        inputs = [normal(4, 3, 6, 6, dtype=F64, seed=10 * rank + k) for k in range(2)]
        results.append(outcome(wrapped, *inputs))
    return *results, BOUND


class InTypes(nn.Module):
    """torch's layers with batches and convolutions in `dtype`, and the norms' weights rounded to it.

    As MixedPrecisionPolicy has it; torch's norm refuses bfloat16 weights beside float32 statistics, ours does not.
    """

    def __init__(self, module, dtype):
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x):
        named = {name: p.to(self.dtype) for name, p in self.module.named_parameters()}
        named = {name: p.float() if p.dim() == 1 else p for name, p in named.items()}
        return func.functional_call(self.module, named, (x.to(self.dtype),))


def sharded(rank, made, units, dtype):
    """One step under fully_shard, ours; and torch's, not sharded, by the mean of both processes' gradients."""
    model = network(nw, F32) if made == "directly" else network(dtype=F32)
    if made == "converted before":
        nw.convert(model)
    mesh, policy = init_device_mesh("cpu", (2,)), MixedPrecisionPolicy(param_dtype=dtype)
    for unit in [*{"norms": [model[1], model[2][2]], "blocks": [model[2]]}[units], model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    kind = type(model[1])
    nw.convert(model)
    assert isinstance(model[1], nw.BatchNorm2d)
    assert isinstance(model[1], FSDPModule) == (units == "norms")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    got = outcome(model, normal(4, 3, 6, 6, seed=rank))
    optimizer.step()
    got |= {f"new {name}": whole(p).detach().clone() for name, p in model.named_parameters()}
    if made == "converted after":
        assert type(nw.revert(model)[1]) is kind

    models = [InTypes(network(dtype=F32), dtype) for _ in range(2)]
    want = [outcome(model, normal(4, 3, 6, 6, seed=k)) for k, model in enumerate(models)]
    for name, p in models[rank].module.named_parameters():
        mean = (want[0][f"d{name}"] + want[1][f"d{name}"]) / 2
        want[rank] |= {f"d{name}": mean, f"new {name}": p.detach() - 0.125 * mean}
    # float32 roundings, which each of five layers may enlarge; or bfloat16's
    return got, want[rank], HALF if dtype == BF16 else 1000 * UNIT[F32]


MADE = ("directly", "converted before", "converted after")
CASES = {
    f"{run.__name__}, {made}, {', '.join(map(str, more))}": (run, made, *more)
    for run, options in (
        (parallel, [("train",), ("eval",)]),
        (sharded, [(units, dtype) for units in ("norms", "blocks") for dtype in (F32, BF16)]),
    )
    for made in MADE
    for more in options
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_torchs_layers_do(case, processes):
    run, *arguments = CASES[case]
    for results in processes.run(run, *arguments):
        same(*results)


def test_the_two_processes_saw_different_batches(processes):
    got, other = (results[0] for results in processes.run(parallel, "directly", "train"))
    with pytest.raises(AssertionError, match=r"^y0"):
        same(got, other)
    for name in got:  # and yet share their gradients
        if name.startswith("d"):
            same({name: got[name]}, {name: other[name]})
