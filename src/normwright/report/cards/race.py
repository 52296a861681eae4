"""The race told: how many steps, how accurate in the end, and what failed."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from normwright.report import figures, style
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Line
from normwright.report.result import Result
from normwright.report.summary import PERCENT, PLAIN, WHOLE_PERCENT, Unit, spread, told
from normwright.report.words import Say

WITHOUT, WITH = "without BN", "BN"
PAPER = 0.07  # of the steps: Ioffe & Szegedy 2015, abstract and section 4.2.2 (14 times fewer)
# A run has failed when it ends closer to guessing among ten classes than this: three times the chance of 0.1.
FAILED = 0.3
# Two accuracies are as good when they are this close: a little more than the standard error of an accuracy of
# 0.97 measured on 400 images, sqrt(0.97 * 0.03 / 400) = 0.009.
AS_WELL = 0.01


def card(result: Result, say: Say) -> Card:
    """The race's card."""
    names = networks(result)
    return Card(
        name=result.name,
        title=say("The race: steps to the same accuracy", "竞速：达到同样准确率所需的步数"),
        claim=say(
            "Batch normalization (BN) matches the accuracy of the network without it in a fraction of the training "
            "steps (7 % on ImageNet), ends higher, allows far larger learning rates, and makes sigmoid networks "
            "trainable.",
            "批量归一化（BN）只需一小部分训练步数（在 ImageNet 上为 7 %）就能达到无 BN 网络的准确率，"
            "最终准确率更高，允许大得多的学习率，并使 sigmoid 网络可以训练。",
        ),
        done=say(
            "Each network from the same weights and on the same batches, plain SGD. Both sides try the same "
            f"learning rates, chosen on the validation images. {_seeds(result)} seeds; lines are medians, bands "
            "the range.",
            f"每个网络从相同的权重、相同的批次出发，使用普通 SGD。两边尝试同样的学习率，并在验证图像上选择。"
            f"{_seeds(result)} 个随机种子；线为中位数，色带为范围。",
        ),
        verdicts=(
            *(speed(result, name, say) for name in names),
            accuracy(result, say),
            rates(result, say),
            large_rates(result, say),
            *((sigmoid(result, say),) if _with_sigmoid(result) else ()),
        ),
        pictures=tuple(picture for name in names for picture in _pictures(result, name, say)),
        see=say(
            "Dashed: the best accuracy without BN. The dots are where each side first got there.",
            "虚线：无 BN 时的最佳准确率。圆点：两边首次到达该处的步数。",
        ),
        tables=tuple(_conditions(result, name, say) for name in names),
        details=tuple(_rates(result, name, say) for name in names),
        command=result.command,
    )


def headline(result: Result, say: Say) -> str:
    """The measured ratio of steps of each network in one sentence, whichever way it went."""
    shares = []
    for name in networks(result):
        share = result.spread("ratio of steps", network=name, condition=WITH).middle
        shares.append(
            f"{say('more than all', '全部以上') if share is None else WHOLE_PERCENT(share)} ({name})"
        )
    return say(
        f"Batch normalization took {say.listed(shares)} of the training steps to match the best accuracy reached "
        "without it.",
        f"要达到无批量归一化时的最佳准确率，批量归一化用了 {say.listed(shares)} 的训练步数。",
    )


def networks(result: Result) -> list[str]:
    """The networks that ran, in order."""
    return result.each("ratio of steps", "network")


# --- verdicts ---------------------------------------------------------


def speed(result: Result, network: str, say: Say) -> Verdict:
    """With BN, fewer steps reach the best accuracy without it: for all seeds, or in the median."""
    ratios = result.values("ratio of steps", network=network, condition=WITH)
    sooner = sum(ratio is not None and ratio < 1 for ratio in ratios)
    of = spread(ratios)
    share = told(of, WHOLE_PERCENT, say)
    return Verdict(
        say(f"{network}: fewer steps to the same accuracy", f"{network}：达到同样准确率所需步数更少"),
        outcome(sooner == len(ratios), of.middle is not None and of.middle < 1),
        say(
            f"The best accuracy without BN came sooner with it for {sooner} of {len(ratios)} seeds; "
            f"share of the steps: {share}. The paper: {WHOLE_PERCENT(PAPER)}.",
            f"{len(ratios)} 个种子中有 {sooner} 个更早达到；所用步数的比例：{share}。"
            f"论文：{WHOLE_PERCENT(PAPER)}。",
        ),
    )


def accuracy(result: Result, say: Say) -> Verdict:
    """With BN, the test accuracy is higher: the worst seed above the best without on every network, or medians."""
    clear, higher, shown = [], [], []
    for name in networks(result):
        sides = [result.numbers("test accuracy", network=name, condition=c) for c in (WITHOUT, WITH)]
        clear.append(min(sides[1]) > max(sides[0]))
        higher.append(median(sides[1]) > median(sides[0]))
        before, after = (told(spread(side), PERCENT, say) for side in sides)
        shown.append(say(f"{name} {after} with, {before} without", f"{name} 有 BN {after}，无 BN {before}"))
    return Verdict(
        say("Higher test accuracy in the end", "最终测试准确率更高"),
        outcome(all(clear), any(higher)),
        "; ".join(shown) + say(".", "。"),
    )


def rates(result: Result, say: Say) -> Verdict:
    """The largest learning rate at which a network still learns as well as without BN at its best."""
    larger, shown = [], []
    for name in networks(result):
        scores = {
            side: {
                float(str(r.where["rate"])): r.value or 0.0
                for r in result.pick("score of a rate", network=name, condition=side)
            }
            for side in (WITHOUT, WITH)
        }
        goal = max(scores[WITHOUT].values()) - AS_WELL
        largest = {
            side: max((rate for rate, score in tried.items() if score >= goal), default=0.0)
            for side, tried in scores.items()
        }
        larger.append(largest[WITH] > largest[WITHOUT])
        pair = " → ".join(
            f"{largest[side]:g}" if largest[side] else say("none", "无") for side in (WITHOUT, WITH)
        )
        shown.append(f"{name} {pair}" + (" (≥)" if largest[WITH] == max(scores[WITH]) else ""))
    return Verdict(
        say("Larger learning rates work with BN", "有 BN 时可用更大的学习率"),
        outcome(all(larger), any(larger)),
        say(
            f"The largest rate tried that learns as well as the best without BN, without → with: "
            f"{'; '.join(shown)}.",
            f"与无 BN 最佳结果同样好的最大学习率（尝试过的），无 → 有：{'；'.join(shown)}。",
        ),
    )


def large_rates(result: Result, say: Say) -> Verdict:
    """At 30 times the rate that is best without BN, a network with BN still learns as well, seed by seed."""
    good, learned, runs = 0, 0, 0
    for name in networks(result):
        base = median(result.numbers("test accuracy", network=name, condition=WITHOUT))
        for value in result.numbers("test accuracy", network=name, condition="BN, rate x30"):
            runs += 1
            good += value >= base - AS_WELL
            learned += value >= FAILED
    return Verdict(
        say("Thirty times the learning rate works with BN", "有 BN 时，三十倍的学习率可行"),
        outcome(good == runs, learned == runs),
        say(
            f"{good} of {runs} runs end within a point of the accuracy without BN at its own best rate; "
            f"{runs - learned} fail (end below {WHOLE_PERCENT(FAILED)}).",
            f"{runs} 次训练中有 {good} 次的结果与无 BN 时（用其最佳学习率）相差不到一个百分点；"
            f"{runs - learned} 次失败（低于 {WHOLE_PERCENT(FAILED)}）。",
        ),
    )


def sigmoid(result: Result, say: Say) -> Verdict:
    """With sigmoid in place of ReLU, BN reaches a higher accuracy: for every pair of seeds, or in the medians."""
    clear, higher, shown = [], [], []
    for name in _with_sigmoid(result):
        without = result.numbers("test accuracy", network=name, condition="sigmoid without BN")
        with_norm = result.numbers("test accuracy", network=name, condition="BN with sigmoid")
        clear.append(all(w > o for w, o in zip(with_norm, without, strict=True)))
        higher.append(median(with_norm) > median(without))
        before, after = (told(spread(side), PERCENT, say) for side in (without, with_norm))
        shown.append(say(f"{name} {after} with, {before} without", f"{name} 有 BN {after}，无 BN {before}"))
    return Verdict(
        say("With sigmoid instead of ReLU, BN is more accurate", "用 sigmoid 代替 ReLU 时，有 BN 更准确"),
        outcome(all(clear), any(higher)),
        "; ".join(shown) + say(".", "。"),
    )


# --- pictures and tables ----------------------------------------------


def _pictures(result: Result, network: str, say: Say) -> list[Picture]:
    name = f"race-{network.replace(' ', '-').lower()}"
    layers = _entry(result, network)["network"]["layers"]
    sides = ((WITHOUT, say("without BN", "无 BN")), (WITH, say("with BN", "有 BN")))
    own = Picture(
        name,
        lambda: _curves(result, network, sides, say),
        say(
            f"Validation accuracy of the {network} against training step, with BN and without.",
            f"{network} 的验证准确率随训练步数的变化，有 BN 与无 BN。",
        ),
        f"{network}: {layers}",
    )
    if network not in _with_sigmoid(result):
        return [own]
    swapped = (
        ("sigmoid without BN", say("without BN", "无 BN")),
        ("BN with sigmoid", say("with BN", "有 BN")),
    )
    return [
        own,
        Picture(
            f"{name}-sigmoid",
            lambda: _curves(result, network, swapped, say),
            say(
                f"The same for the {network} with sigmoid in place of ReLU.",
                f"同上，{network} 用 sigmoid 代替 ReLU。",
            ),
            say(f"{network} with sigmoid instead of ReLU", f"{network}，用 sigmoid 代替 ReLU"),
        ),
    ]


def _curves(result: Result, network: str, sides: Sequence[tuple[str, str]], say: Say) -> Any:
    goal = median(result.numbers("goal", network=network, condition=WITH))
    drawn = []
    for (condition, label), colour in zip(sides, (style.WITHOUT, style.WITH), strict=True):
        steps, heights = result.curves("validation accuracy", "step", network=network, condition=condition)
        reached = result.spread("steps to the goal", network=network, condition=condition).middle
        marks = () if reached is None else ((reached, goal, f"{reached:g}"),)
        drawn.append(Line(label, steps, heights, colour, marks=marks))
    x = Axis(say("training step", "训练步数"), low=0)
    y = Axis(say("validation accuracy", "验证准确率"), percent=True, low=_floor(drawn), high=1.0)
    return figures.lines(drawn, x, y, level=goal)


def _floor(drawn: Sequence[Line]) -> float:
    """The lowest accuracy shown: a little below what the slower side has after a tenth of the run.

    So the first climb, which starts at chance, does not press all the rest against the top.
    """
    early = min(float(line.middle[len(line.middle) // 10]) for line in drawn)
    return max(0.0, min(0.9, int(early * 20) / 20 - 0.05))


def _conditions(result: Result, network: str, say: Say) -> Table:
    """Every condition of one network, a row each; failures in words."""

    def cell(condition: str, what: str, unit: Unit) -> str:
        return told(result.spread(what, network=network, condition=condition), unit, say)

    def failures(condition: str) -> str:
        where = {"network": network, "condition": condition}
        broken = sum(step is not None for step in result.values("failed at", **where))
        stuck = sum(value < FAILED for value in result.numbers("test accuracy", **where)) - broken
        words = [say(f"{broken} not finite", f"{broken} 次非有限值")] if broken else []
        words += [say(f"{stuck} at chance", f"{stuck} 次未学会")] if stuck > 0 else []
        return ", ".join(words) or say("none", "无")

    budget = _entry(result, network)["budget"]
    goal = told(result.spread("goal", network=network, condition=WITHOUT), PERCENT, say)
    return Table(
        title=say(
            f"{network}: median of {_seeds(result)} seeds (range)",
            f"{network}：{_seeds(result)} 个种子的中位数（范围）",
        ),
        columns=(
            "",
            say("rate", "学习率"),
            say("steps to the goal", "到达目标的步数"),
            say("share of the steps", "步数比例"),
            say("test accuracy", "测试准确率"),
            say("failures", "失败"),
        ),
        rows=tuple(
            (
                condition_name(condition, say),
                f"{result.each('test accuracy', 'rate', network=network, condition=condition)[0]:g}",
                cell(condition, "steps to the goal", PLAIN),
                cell(condition, "ratio of steps", WHOLE_PERCENT),
                cell(condition, "test accuracy", PERCENT),
                failures(condition),
            )
            for condition in result.each("ratio of steps", "condition", network=network)
        ),
        note=say(
            f"{budget['steps']} steps of {budget['batch_size']} images, looked at every {budget['every']}. The "
            f"goal is the best validation accuracy without BN, seed by seed: {goal}. The range of five seeds "
            "holds the median of all seeds with 94 % confidence (1 - 2/2^5), of three with 75 %.",
            f"{budget['steps']} 步，每步 {budget['batch_size']} 张图像，每 {budget['every']} 步评估一次。目标是"
            f"无 BN 时（逐个种子）的最佳验证准确率：{goal}。五个种子的范围以 94 % 的置信度包含总体中位数"
            f"（1 - 2/2^5），三个种子为 75 %。",
        )
        + _edges(result, network, say),
    )


def condition_name(condition: str, say: Say) -> str:
    """A condition of the race in the reader's language."""
    words = {
        WITHOUT: say("without BN, best rate", "无 BN，最佳学习率"),
        WITH: say("BN, best rate", "BN，最佳学习率"),
        "BN, rate x1": say("BN, the rate best without", "BN，无 BN 时的最佳学习率"),
        "BN, rate x5": say("BN, 5 times that rate", "BN，该学习率的 5 倍"),
        "BN, rate x30": say("BN, 30 times that rate", "BN，该学习率的 30 倍"),
        "sigmoid without BN": say("sigmoid without BN", "sigmoid，无 BN"),
        "BN with sigmoid": say("BN with sigmoid", "sigmoid，有 BN"),
    }
    return words[condition]


def _edges(result: Result, network: str, say: Say) -> str:
    if not any(record.where["edge"] for record in result.pick("chosen rate", network=network)):
        return ""
    return say(
        " A chosen rate is at the edge of its grid: a better one may lie beyond.",
        " 有一个选中的学习率位于网格边缘：更好的值可能在网格之外。",
    )


def _rates(result: Result, network: str, say: Say) -> Table:
    def cell(rate: float, condition: str) -> str:
        where: dict[str, Any] = {"network": network, "condition": condition}
        chosen = result.values("chosen rate", **where) == [rate]
        return PERCENT(result.number("score of a rate", rate=rate, **where)) + (
            say(" chosen", " 选中") if chosen else ""
        )

    return Table(
        title=say(f"{network}: learning rates tried", f"{network}：尝试过的学习率"),
        columns=(say("rate", "学习率"), say("without BN", "无 BN"), say("with BN", "有 BN")),
        rows=tuple(
            (f"{rate:g}", cell(rate, WITHOUT), cell(rate, WITH)) for rate in _entry(result, network)["rates"]
        ),
        note=say(
            "Validation accuracy, mean over the last quarter of a run: every rate with the first seed, each side's "
            "best two with all seeds.",
            "一次训练最后四分之一的平均验证准确率：每个学习率用第一个种子，每边最好的两个用全部种子。",
        ),
    )


def _entry(result: Result, network: str) -> dict[str, Any]:
    return next(entry for entry in result.settings["entries"] if entry["network"]["name"] == network)


def _seeds(result: Result) -> int:
    return int(result.settings["seeds"])


def _with_sigmoid(result: Result) -> Sequence[str]:
    return result.each("ratio of steps", "network", condition="BN with sigmoid")
