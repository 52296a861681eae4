"""A results file of the laboratory as a document: the headline, a card for each experiment, the questions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normwright.report import questions
from normwright.report.cards import (
    affine,
    batch_size,
    features,
    generalization,
    gradients,
    inference,
    race,
    relatives,
    scale,
    shift,
)
from normwright.report.document import Card, Document
from normwright.report.records import Record
from normwright.report.result import Result
from normwright.report.words import Say

CARDS: dict[str, Callable[[Result, Say], Card]] = {
    "race": race.card,
    "inference": inference.card,
    "shift": shift.card,
    "gradients": gradients.card,
    "scale": scale.card,
    "affine": affine.card,
    "features": features.card,
    "batch-size": batch_size.card,
    "generalization": generalization.card,
    "relatives": relatives.card,
}
STAMPED = ("processor", "cores", "python", "normwright", "numpy", "torch", "scikit-learn")


def results(records: Sequence[Record], about: Mapping[str, Any]) -> dict[str, Result]:
    """The experiments of a results file, each with its own records."""
    return {
        name: Result(name, [r for r in records if r.experiment == name], told["settings"], told["command"])
        for name, told in about["experiments"].items()
    }


def document(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> Document:
    """The whole report, from what stands in a results file."""
    found = results(records, about)
    cards = tuple(CARDS[name](result, say) for name, result in found.items())
    return Document(
        title=say("What batch normalization did here", "批量归一化在这里做了什么"),
        headline=_headline(found, cards, say),
        about=_about(about["data"], say),
        cards=cards,
        command=about["command"],
        stamp=tuple(
            (key, str(about["stamp"][key])) for key in STAMPED if about["stamp"].get(key) is not None
        ),
        answers=questions.answers(found, say),
    )


def _headline(found: Mapping[str, Result], cards: Sequence[Card], say: Say) -> str:
    """The measured ratio of steps; without a race, how many claims held."""
    if "race" in found:
        return race.headline(found["race"], say)
    verdicts = [verdict for card in cards for verdict in card.verdicts]
    held = sum(verdict.outcome == "holds" for verdict in verdicts)
    return say(
        f"Of {len(verdicts)} claims about batch normalization, {held} held here.",
        f"关于批量归一化的 {len(verdicts)} 个论断中，有 {held} 个在这里成立。",
    )


def _about(data: Mapping[str, Any], say: Say) -> str:
    stored = f"{data['pixels']}x{data['pixels']}"
    source = {
        "digits": say("scikit-learn's handwritten digits", "scikit-learn 的手写数字"),
        "mnist": "MNIST",
        "cifar10": "CIFAR-10",
    }[data["name"]]
    return say(
        f"Measured on {source}, {stored} pixels, resized bilinearly to what each network takes (enlarging adds no "
        "detail). Learning rates were chosen on validation images, never on the test images. Numbers are medians, "
        "ranges in brackets.",
        f"数据：{source}，{stored} 像素，双线性缩放到各网络所需的大小（放大不增加细节）。学习率在验证图像上选择，"
        "从不在测试图像上选择。数字为中位数，括号内为范围。",
    )
