"""Features in different units told: how many steps descent takes, at which rates, and where it ends."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from normwright.report import figures, style
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Line
from normwright.report.result import Result
from normwright.report.summary import PERCENT, PLAIN, SHORT, Unit, spread, told
from normwright.report.words import Say

RAW, STANDARDIZED, WITH = "raw", "standardized", "BN first"
SIDES = (RAW, STANDARDIZED, WITH)
HALFWAY, NEARLY = 0.5, 0.9  # of the way from the first loss to the solver's
# Two test scores of one seed are the same when they are this close: a little more than the standard error of an
# accuracy of 0.97 on the 114 rows of the larger test part, sqrt(0.97 * 0.03 / 114) = 0.016. R^2 varies more.
SAME = 0.02
MEASURED = Unit(form=".4g")  # a feature in its own unit
R2 = Unit(form=".3f")


def card(result: Result, say: Say) -> Card:
    """The card of the input features."""
    names = problems(result)
    settings = result.settings
    return Card(
        name=result.name,
        title=say("Input features in different units", "单位不同的输入特征"),
        claim=say(
            "Where features have different units, such as age and price, standardizing them (subtract the mean, "
            "divide by the standard deviation) lets gradient descent converge sooner; BN as the first layer does "
            "the same.",
            "当特征的单位不同（例如年龄与价格）时，对其标准化（减去均值、除以标准差）能让梯度下降更快收敛；"
            "把 BN 作为第一层效果相同。",
        ),
        done=say(
            "Logistic regression on scikit-learn's breast cancer table, linear regression on its diabetes table, "
            f"plain SGD from weights of 0, {settings['budget']['steps']} steps of "
            f"{settings['budget']['batch_size']} rows. Each form of the features takes the "
            "rate that is best for it on validation rows, from one grid. BN predicts by the average of all "
            f"batches. {settings['seeds']} seeds.",
            "用 scikit-learn 的乳腺癌数据做逻辑回归，用其糖尿病数据做线性回归；权重从 0 开始，普通 SGD，"
            f"{settings['budget']['steps']} 步，每步 {settings['budget']['batch_size']} 行。"
            "每种形式的特征从同一网格中取在验证数据上最好的学习率。BN 用所有批次的平均统计量预测。"
            f"{settings['seeds']} 个随机种子。",
        ),
        verdicts=(
            sooner(result, STANDARDIZED, say),
            sooner(result, WITH, say),
            rates(result, say),
            same_end(result, say),
        ),
        pictures=tuple(_picture(result, name, say) for name in names),
        see=say(
            "Steps are on a logarithmic axis. Dashed: the loss of a solver. Where standardized features and BN "
            "first chose the same rate, their lines lie on each other.",
            "横轴为对数刻度。虚线：求解器达到的损失。标准化与 BN 在前若选中同一学习率，两条线重合。",
        ),
        tables=(_units(result, say), *(_table(result, name, say) for name in names)),
        details=tuple(_rates(result, name, say) for name in names),
        command=result.command,
    )


def problems(result: Result) -> list[str]:
    """The problems that were solved, in order."""
    return [str(name) for name in result.each("solver's train loss", "problem")]


# --- verdicts ---------------------------------------------------------


def sooner(result: Result, side: str, say: Say) -> Verdict:
    """Nearly all of the way takes fewer steps than with raw features: for every seed, or in every median."""
    pairs, medians, words = [], [], []
    for name in problems(result):
        ends = {
            s: result.values("steps to a share of the way", problem=name, side=s, share=NEARLY)
            for s in (RAW, side)
        }
        pairs += [_fewer(s, r) for s, r in zip(ends[side], ends[RAW], strict=True)]
        medians.append(_fewer(spread(ends[side]).middle, spread(ends[RAW]).middle))
        other, raw = (told(spread(ends[s]), PLAIN, say) for s in (side, RAW))
        words.append(
            say(
                f"{problem_name(name, say)} {other}, raw {raw}",
                f"{problem_name(name, say)} {other}，原始 {raw}",
            )
        )
    claims = {
        STANDARDIZED: say("Standardized features: fewer steps", "标准化的特征：步数更少"),
        WITH: say("BN first: fewer steps too", "BN 作为第一层：步数同样更少"),
    }
    budget = result.settings["budget"]["steps"]
    return Verdict(
        claims[side],
        outcome(all(pairs), any(medians)),
        say(
            f"Steps to nine tenths of the way to the solver's loss: {'; '.join(words)} (of {budget}). Fewer than "
            f"raw in {sum(pairs)} of {len(pairs)} runs.",
            f"走完到求解器损失的十分之九所需步数：{'；'.join(words)}（共 {budget} 步）。{len(pairs)} 次训练中有 "
            f"{sum(pairs)} 次少于原始特征。",
        ),
    )


def _fewer(steps: float | None, than: float | None) -> bool:
    """None is never, which is more than any number and not fewer than never."""
    return steps is not None and (than is None or steps < than)


def rates(result: Result, say: Say) -> Verdict:
    """The largest rate that descends is larger than with raw features, on every problem or on one."""
    larger, words = [], []
    for name in problems(result):
        largest = {s: result.values("largest rate that descends", problem=name, side=s)[0] for s in SIDES}
        raw = largest[RAW] or 0.0
        larger += [(largest[side] or 0.0) > raw for side in (STANDARDIZED, WITH)]
        shown = " / ".join(_rate(largest[side], say) for side in SIDES)
        condition = [
            f"{result.spread('condition number', problem=name, side=side).middle:.1e}"
            for side in (RAW, STANDARDIZED)
        ]
        words.append(
            say(
                f"{problem_name(name, say)} {shown} (condition number of the covariance {condition[0]}, "
                f"standardized {condition[1]})",
                f"{problem_name(name, say)} {shown}（协方差的条件数 {condition[0]}，标准化后 {condition[1]}）",
            )
        )
    return Verdict(
        say("Far larger rates descend", "可用的学习率大得多"),
        outcome(all(larger), any(larger)),
        say(
            f"The largest rate tried that ends below the loss of the start, raw / standardized / BN first: "
            f"{'; '.join(words)}.",
            f"尝试过的、损失最终低于起点的最大学习率，原始 / 标准化 / BN 在前：{'；'.join(words)}。",
        ),
    )


def same_end(result: Result, say: Say) -> Verdict:
    """All three end with the solver's test score but for noise, or standardized and BN first do."""
    gaps: dict[str, list[float]] = {side: [] for side in SIDES}
    words = []
    for name in problems(result):
        solver = result.numbers("solver's test score", problem=name)
        for side in SIDES:
            gaps[side].append(_gap(result.values("test score", problem=name, side=side), solver))
        shown = " / ".join(told(result.spread("test score", problem=name, side=s), R2, say) for s in SIDES)
        words.append(f"{problem_name(name, say)} {shown} / {told(spread(solver), R2, say)}")
    close = {side: all(gap <= SAME for gap in gaps[side]) for side in SIDES}
    away = say.listed([side_name(side, say) for side in SIDES if not close[side]] or [say("none", "无")])
    return Verdict(
        say("In the end the same solution", "最终得到同样的解"),
        outcome(all(close.values()), close[STANDARDIZED] and close[WITH]),
        say(
            f"Test score (accuracy, R^2) raw / standardized / BN first / solver: {'; '.join(words)}. Largest "
            f"median gap to the solver: {', '.join(f'{max(gaps[side]):.2g}' for side in SIDES)}; not there "
            f"yet: {away}.",
            f"测试得分（准确率、R^2），原始 / 标准化 / BN 在前 / 求解器：{'；'.join(words)}。与求解器之差的中位数"
            f"（取较大的问题）：{'、'.join(f'{max(gaps[side]):.2g}' for side in SIDES)}；尚未到达：{away}。",
        ),
    )


def _gap(scores: Sequence[float | None], solver: Sequence[float]) -> float:
    """The median over the seeds of how far a score is from the solver's; a missing score is all of it away."""
    return median(abs((score or 0.0) - best) for score, best in zip(scores, solver, strict=True))


# --- pictures and tables ----------------------------------------------


def problem_name(name: str, say: Say) -> str:
    """A problem in the reader's language."""
    words = {
        "logistic regression": say("logistic regression", "逻辑回归"),
        "linear regression": say("linear regression", "线性回归"),
    }
    return words[name]


def side_name(side: str, say: Say) -> str:
    """A form of the features in the reader's language."""
    words = {
        RAW: say("raw", "原始"),
        STANDARDIZED: say("standardized", "标准化"),
        WITH: say("BN first", "BN 在前"),
    }
    return words[side]


def _picture(result: Result, name: str, say: Say) -> Picture:
    return Picture(
        f"features-{name.split()[0]}",
        lambda: _curves(result, name, say),
        say(
            f"Training loss of {name} against the number of steps: raw features, standardized ones, BN first.",
            f"{problem_name(name, say)}的训练损失随步数的变化：原始特征、标准化特征、BN 在前。",
        ),
        say(f"{name.capitalize()}: loss on the way", f"{problem_name(name, say)}：下降过程中的损失"),
    )


def _curves(result: Result, name: str, say: Say) -> Any:
    drawn = []
    for side, colour in zip(SIDES, (style.WITHOUT, style.THIRD, style.WITH), strict=True):
        steps, rows = result.curves("train loss", "step", problem=name, side=side)
        # Step 0 has no place on a logarithmic axis, and is the same for all.
        drawn.append(Line(side_name(side, say), steps[1:], [row[1:] for row in rows], colour))
    x = Axis(say("training step", "训练步数"), log=True, low=1)
    y = Axis(say("training loss", "训练损失"), low=0.0, high=_ceiling(result, name))
    return figures.lines(drawn, x, y, level=median(result.numbers("solver's train loss", problem=name)))


def _ceiling(result: Result, name: str) -> float:
    """A little above the loss at the start, however high a curve may jump for a while."""
    return 1.15 * median(result.numbers("train loss", problem=name, step=0))


def _rate(rate: float | None, say: Say) -> str:
    return say("none", "无") if rate is None else f"{rate:g}"


def feature_name(feature: str, say: Say) -> str:
    """A feature in words; those of the diabetes table are named s1 to s6 in it."""
    words = {
        "mean area": say("area of a cell nucleus", "细胞核面积"),
        "mean smoothness": say("smoothness of its edge", "边缘光滑度"),
        "s1": say("total cholesterol", "总胆固醇"),
        "s5": say("log of triglycerides", "甘油三酯（对数）"),
    }
    return words.get(feature, feature)


def _units(result: Result, say: Say) -> Table:
    def cells(name: str, feature: str) -> tuple[str, ...]:
        ends = [
            result.number("feature", problem=name, feature=feature, of=end)
            for end in ("lowest", "highest", "deviation")
        ]
        return (feature_name(feature, say), problem_name(name, say), *(MEASURED(end) for end in ends))

    return Table(
        title=say("Units of their own: two features of each table", "各有各的单位：每个数据表的两个特征"),
        columns=(
            "",
            say("used for", "用于"),
            say("lowest", "最小"),
            say("highest", "最大"),
            say("deviation", "标准差"),
        ),
        rows=tuple(
            cells(name, str(feature))
            for name in problems(result)
            for feature in result.each("feature", "feature", problem=name)
        ),
    )


def _table(result: Result, name: str, say: Say) -> Table:
    def cells(side: str) -> tuple[str, ...]:
        (chosen,) = result.pick("chosen rate", problem=name, side=side)
        edge = {"lowest": " (≤)", "highest": " (≥)"}.get(str(chosen.where["edge"]), "")
        steps = [
            told(
                result.spread("steps to a share of the way", problem=name, side=side, share=share), PLAIN, say
            )
            for share in (HALFWAY, NEARLY)
        ]
        score = told(result.spread("test score", problem=name, side=side), unit, say)
        return (side_name(side, say), f"{chosen.value:g}{edge}", *steps, score)

    unit = PERCENT if name.startswith("logistic") else R2
    solver = told(result.spread("solver's test score", problem=name), unit, say)
    return Table(
        title=f"{problem_name(name, say)}{say(': median over the seeds (range)', '：各种子的中位数（范围）')}",
        columns=(
            "",
            say("rate", "学习率"),
            say("steps to 1/2", "走完 1/2 的步数"),
            say("steps to 9/10", "走完 9/10 的步数"),
            say("accuracy", "准确率") if name.startswith("logistic") else "R^2",
        ),
        rows=(*(cells(side) for side in SIDES), (say("solver", "求解器"), "", "", "", solver)),
        note=say(
            "Steps to a half and to nine tenths of the way from the first loss to the solver's. Judged on test "
            "rows.",
            "从最初的损失到求解器的损失，走完一半和十分之九所需的步数。得分取自测试数据。",
        ),
    )


def _rates(result: Result, name: str, say: Say) -> Table:
    def cell(rate: float, side: str) -> str:
        (value,) = result.values("score of a rate", problem=name, side=side, rate=rate)
        return say("not finite", "非有限值") if value is None else SHORT(value)

    tried = [float(rate) for rate in result.each("score of a rate", "rate", problem=name)]
    return Table(
        title=say(f"{name}: validation loss by rate", f"{problem_name(name, say)}：各学习率的验证损失"),
        columns=(say("rate", "学习率"), *(side_name(side, say) for side in SIDES)),
        rows=tuple((f"{rate:g}", *(cell(rate, side) for side in SIDES)) for rate in tried),
        note=say(
            "Mean over the last quarter of the run; the lowest of a column was chosen.",
            "训练最后四分之一的平均值；每列选其最低者。",
        ),
    )
