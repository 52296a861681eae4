"""Several processes train one network, and get the curve of one process.

    torchrun --nproc-per-node 2 examples/train_distributed.py
    torchrun --nproc-per-node 3 examples/train_distributed.py --figure curves.svg

The same small network learns handwritten digits three times, from the same weights and the same batches:

    one process            each batch whole, plain BatchNorm
    N processes, sync      each batch cut into N pieces; DistributedDataParallel, and BatchNorm with sync="world"
    N processes, no sync   the same, but every process normalizes by its own piece

The first two are one curve: in both, batch norm sees the whole batch. What is left is rounding, about 1e-15 of the
loss in float64 and 1e-6 in float32. The third is another curve.
"""

import argparse
import importlib.util
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normwright.torch as nw

EVERY = 10  # steps between two measurements of accuracy
Curves = dict[str, tuple[list[float], dict[int, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="batches to learn from (default 60)")
    parser.add_argument("--batch", type=int, default=16, help="images in all processes together (default 16)")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--figure", metavar="FILE", help="draw the curves, as .svg, .png or .pdf")
    options = parser.parse_args()
    for package in ("rich", "sklearn", *(["matplotlib"] if options.figure else [])):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"This needs {package}. Install it with: pip install 'normwright[lab]'")

    if "RANK" in os.environ:  # torchrun tells each process who it is
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        compare(options)
    finally:
        dist.destroy_process_group()


def compare(options: argparse.Namespace) -> None:
    """Train three times; the first process shows what came of it."""
    from rich.console import Console
    from rich.progress import Progress

    first, size = dist.get_rank() == 0, dist.get_world_size()
    if options.batch < size:
        raise SystemExit(f"--batch {options.batch} leaves nothing to some of {size} processes.")
    many = "1 process" if size == 1 else f"{size} processes"
    images, labels = digits(getattr(torch, options.dtype))
    curves: Curves = {}
    with Progress(console=Console(stderr=True), disable=not first) as progress:
        for name, split, sync in (
            ("one process", False, None),
            (f"{many}, sync", True, "world"),
            (f"{many}, no sync", True, None),
        ):
            steps = progress.track(range(1, options.steps + 1), description=name)
            curves[name] = train(steps, images, labels, options.batch, split, sync)
    if first:
        show(curves, size)
        if options.figure:
            draw(curves, options.figure)


def digits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """1797 images of 8 x 8 pixels, with their labels; the last 497 are for measuring."""
    from sklearn.datasets import load_digits

    package = load_digits()
    return torch.tensor(package.images[:, None] / 16, dtype=dtype), torch.tensor(package.target)


def network(dtype: torch.dtype) -> nn.Module:
    """The same weights in every process and for every curve."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2 * 2, 10)).to(dtype)


def train(
    steps: Iterable[int],
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    split: bool,
    sync: str | None,
) -> tuple[list[float], dict[int, float]]:
    """The loss of each whole batch; and after some steps the accuracy on the last 497 images."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
    model = nw.convert(network(images.dtype), sync=sync)  # all that synchronized batch norm asks of a script
    learner = DistributedDataParallel(model) if split else model
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.02, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    losses, right = [], {}
    for step in steps:
        whole = torch.randperm(1300, generator=order)[:batch]
        mine = whole[rank::size]  # pieces may differ in size
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(learner(images[mine]), labels[mine], reduction="sum") / batch
        (
            size * loss
        ).backward()  # DistributedDataParallel takes the mean of the gradients; this makes it the sum
        optimizer.step()
        loss = loss.detach()
        if split:
            dist.all_reduce(loss)
        losses.append(loss.item())
        if step % EVERY == 0:
            right[step] = accuracy(model, images[1300:], labels[1300:])
    return losses, right


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    right = model.eval()(images).argmax(1) == labels
    model.train()
    return right.double().mean().item()


def show(curves: Curves, size: int) -> None:
    """A table of the curves, and how far each is from the first."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("step", *curves, title="loss of the batch, accuracy on unseen images")
    (alone, measured), *_ = curves.values()
    for step in measured:
        cells = (f"{losses[step - 1]:.6f}  {right[step]:.1%}" for losses, right in curves.values())
        table.add_row(str(step), *cells)
    console.print(table)
    for name in list(curves)[1:]:
        most = max(abs(a - b) for a, b in zip(curves[name][0], alone, strict=True))
        console.print(
            f"largest difference in loss from one process, {name}: {most:.1e}",
            soft_wrap=True,
            highlight=False,
        )
    if size == 1:
        again = "torchrun --nproc-per-node 2 examples/train_distributed.py"
        console.print(
            f"This was one process in all. To see several: {again}", soft_wrap=True, highlight=False
        )


def draw(curves: Curves, path: str) -> None:
    """The losses; that of one process is thin and lies on the wide one of synchronized processes."""
    import matplotlib

    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    lines = ("black", 1.2), ("#9cc9ee", 6), ("#b84e00", 1.2)
    for (name, (losses, _)), (colour, width) in zip(curves.items(), lines, strict=True):
        steps = range(1, len(losses) + 1)
        axes.plot(steps, losses, color=colour, linewidth=width, label=name, zorder=3 - width / 6)
    axes.set(xlabel="step", ylabel="loss of the batch", ylim=0)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
