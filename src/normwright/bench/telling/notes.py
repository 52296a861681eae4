"""What the numbers of a benchmark mean little without: machine, versions, memory, floor, who was measured where."""

from collections.abc import Mapping, Sequence
from typing import Any

from normwright.bench.cases import COMPILED, JAX, PASSES, PEAK, TORCH
from normwright.bench.machine import caches
from normwright.report.records import Record
from normwright.report.words import Say

OP_NAMES = {"bn": "BN", "bn+relu": "BN+ReLU", "bn+add+relu": "BN+add+ReLU"}
BUSY = 0.5  # of a core, beside us
SHOWN = {TORCH: "torch", COMPILED: "torch.compile", JAX: "JAX"}


def step(what: str, say: Say) -> str:
    """A pass, as it is told."""
    return say(what, dict[str, str](zip(PASSES, ("前向", "前向+反向", "推理"), strict=True))[what])


def state(allocator: str, say: Say) -> str:
    """A state of the allocator, as it is told."""
    return say(allocator, {"warm": "热", "default": "默认"}.get(allocator, allocator))


def notes(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> list[str]:
    """Sentences, a line each."""
    told = [
        conditions(records, about, say),
        contenders(about, say),
        memory(about["allocators"], say),
        peak(records, say),
        floor(records, about["kernels"], say),
        say(f"Measured by `{about['command']}`.", f"由 `{about['command']}` 测得。") + busy(about, say),
    ]
    return [words for words in told if words]


def conditions(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> str:
    """What was measured how often, and on which machine."""
    stamped, kernels = about["stamp"], about["kernels"]
    rounds = [int(r.where["rounds"] or 0) for r in records if r.where.get("rounds")]
    threads = say.listed([str(n) for n in dict.fromkeys(r.where["threads"] for r in records)])
    sizes = caches(kernels, stamped)
    sizes = say(sizes, sizes.replace("last level", "末级").replace("not told by the system", "系统未告知"))
    return say(
        f"Medians of {min(rounds)} to {max(rounds)} interleaved rounds, {threads} "
        f"threads: {stamped['processor']}, {stamped['cores']} cores ({sizes}), "
        f"{kernels['instruction set']} kernels, normwright {stamped['normwright']}, torch {stamped['torch']}, "
        f"Python {stamped['python']}.",
        f"{min(rounds)} 到 {max(rounds)} 轮交错测量的中位数，{threads} 个线程："
        f"{stamped['processor']}，{stamped['cores']} 核（{sizes}），{kernels['instruction set']} 内核，"
        f"normwright {stamped['normwright']}，torch {stamped['torch']}，Python {stamped['python']}。",
    )


def busy(about: Mapping[str, Any], say: Say) -> str:
    """A warning, where others had the machine too."""
    load = float(about.get("load") or 0)
    if load <= BUSY:
        return ""
    return say(
        f" The machine was busy when it began (load {load:.1f}).", f"开始时机器并不空闲（负载 {load:.1f}）。"
    )


def contenders(about: Mapping[str, Any], say: Say) -> str:
    """What each of them is, and where those that take long were measured."""
    versions, subset = about.get("contenders", {}), about.get("subset", [])
    told = say(
        "torch: nn.BatchNorm, `+=` and nn.ReLU(inplace=True); ours: one layer with activation and residual.",
        "torch：nn.BatchNorm、`+=` 与 nn.ReLU(inplace=True)；我们：一个带激活与残差的层。",
    )
    slow = [
        say(f"{SHOWN[name]} (fullgraph)", f"{SHOWN[name]}（fullgraph）")
        if name == COMPILED
        else f"{SHOWN[name]} {versions[name]} (jit)"
        for name in (COMPILED, JAX)
        if name in versions
    ]
    if slow and subset:
        total = len(about.get("reasons", subset))
        told += say(
            f" {say.listed(slow)}, compiled before the clock runs: on {len(subset)} of {total} shapes and layouts.",
            f"{say.listed(slow)}，编译不计时：在 {total} 种形状与布局中的 {len(subset)} 种上。",
        )
    return told


def memory(allocators: Mapping[str, Mapping[str, str]], say: Say) -> str:
    """What the states of the allocator are."""
    variables = [f"`{key}={value}`" for key, value in allocators.get("warm", {}).items()]
    warm = say(
        f"Warm: the allocator keeps freed memory ({', '.join(variables)}), so outputs find its pages. ",
        f"热：分配器保留已释放的内存（{'、'.join(variables)}），因此输出能用上其中现成的页。",
    )
    default = say(
        "Default: the allocator as users get it, with which most outputs above 32 MB, and now and then a "
        "smaller one, fault in every page again, on both sides.",
        "默认：用户实际使用的分配器，此时大于 32 MB 的输出大多（偶尔也有较小的）每一页都要重新缺页，两边都是如此。",
    )
    return ((warm if "warm" in allocators else "") + (default if "default" in allocators else "")).strip()


def peak(records: Sequence[Record], say: Say) -> str:
    """What a peak of memory is, where it was counted."""
    if not any(r.what == PEAK for r in records):
        return ""
    return say(
        "Peak: what a training step adds to the resident set at its highest (VmHWM, set back before it through "
        "`/proc/self/clear_refs`), in a process of its own whose allocator hands every freed block back.",
        "峰值：一个训练步之中常驻内存最多增加多少（VmHWM，之前经 `/proc/self/clear_refs` 复位），"
        "在单独的进程中测得，其分配器在释放时立即交还每一块内存。",
    )


def floor(records: Sequence[Record], kernels: Mapping[str, Any], say: Say) -> str:
    """What the floor is, and where it is not memory's."""
    told = say(
        "The floor is what memory allows, measured in the same rounds on as many bytes: a copy for forward and "
        "inference (with a residual a triad), and for backward a triad (with a residual two reads and two writes).",
        "下限是内存所允许的最短时间，在同样的轮次中以同样多的字节测得：前向与推理为一次复制（copy），"
        "有残差时为一次三元运算（triad）；反向为一次三元运算，有残差时为读二写二。",
    )
    last = int(kernels.get("last-level cache bytes") or 0)
    if max(int(r.where["bytes"] or 0) for r in records) >= 2 * last:
        return told
    return told + say(
        f" No tensor here is twice the last-level cache ({last / (1 << 20):g} MB): "
        "this floor is a cache's, not memory's.",
        f"这里没有一个张量达到末级缓存（{last / (1 << 20):g} MB）的两倍：这个下限是缓存的，而不是内存的。",
    )
