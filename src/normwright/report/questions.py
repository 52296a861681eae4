"""Readers' questions about the paper and its explanations, answered with what the laboratory measured."""

from collections.abc import Callable, Mapping

from normwright.report.cards import affine, inference, scale, shift
from normwright.report.document import Answer, Verdict
from normwright.report.result import Result
from normwright.report.words import Say

Found = Mapping[str, Result]


def answers(found: Found, say: Say) -> tuple[Answer, ...]:
    """The questions whose experiments are in `found`, in order; then the slips in the explanations, put right."""
    asked = {
        "scale": (_eps, _identity),
        "affine": (_learned, _per_channel, _features),
        "shift": (_decouples, _is_it_the_shift),
    }
    told = [
        question(found, say) for name, questions in asked.items() if name in found for question in questions
    ]
    return (*told, *_slips(found, say))


def _measured(found: Found, name: str, verdict: Callable[[Result, Say], Verdict], say: Say) -> str:
    """The sentence of a card's verdict, where its experiment ran."""
    return verdict(found[name], say).sentence if name in found else ""


def _eps(found: Found, say: Say) -> Answer:
    return Answer(
        say("Where does eps come from?", "eps 从何而来？"),
        say(
            "It keeps the division finite where a channel's variance is zero or nearly so, and it is chosen by "
            "hand (1e-5 by default in torch and here). It is small beside any ordinary variance and then changes "
            "nothing; where the variance comes down to it, it shrinks the output to sqrt(var/(var+eps)). ",
            "它使方差为零或接近零的通道上的除法保持有限，由人选定（torch 和这里默认 1e-5）。"
            "与通常的方差相比它很小，不改变任何东西；当方差降到它附近时，输出缩小为 sqrt(var/(var+eps))。",
        )
        + _measured(found, "scale", scale.constant, say)
        + say(" Measured against that formula: ", "与该公式相比：")
        + _measured(found, "scale", scale.formula, say),
        "scale-eps",
    )


def _identity(found: Found, say: Say) -> Answer:
    return Answer(
        say("Does normalizing cost the layer what it could represent?", "归一化会损失该层的表达能力吗？"),
        say(
            "No: gamma and beta can undo it. ",
            "不会：gamma 和 beta 可以把它撤销。",
        )
        + _measured(found, "scale", scale.identity, say),
        "scale-identity",
    )


def _learned(found: Found, say: Say) -> Answer:
    return Answer(
        say("How are gamma and beta learned?", "gamma 和 beta 是如何学到的？"),
        say(
            "As every weight is: by gradient descent, from gamma = 1 and beta = 0. Their gradients are the sums of "
            "dy * x_hat and of dy over the batch (and, in a convolution, over all positions). ",
            "和所有权重一样：从 gamma = 1、beta = 0 出发做梯度下降。它们的梯度是 dy * x_hat 与 dy "
            "在批次上（卷积中还包括所有位置）的和。",
        )
        + _measured(found, "affine", affine.capacity, say),
        "affine-gamma",
    )


def _per_channel(found: Found, say: Say) -> Answer:
    return Answer(
        say("One gamma and beta per neuron, or per layer?", "gamma 和 beta 是每个神经元一对，还是每层一对？"),
        say(
            "One pair for each neuron of a fully connected layer and for each channel of a convolution; mean and "
            "variance likewise. ",
            "全连接层每个神经元一对，卷积层每个通道一对；均值和方差也是如此。",
        )
        + _measured(found, "affine", affine.per_channel, say),
        "affine-beta",
    )


def _features(found: Found, say: Say) -> Answer:
    return Answer(
        say("Are features destroyed?", "特征会被破坏吗？"),
        say(
            "Each channel is shifted and scaled, which loses nothing that the next affine map could use: it can be "
            "undone. ",
            "每个通道只被平移和缩放，下一个仿射映射能用的信息一点不少：这是可逆的。",
        )
        + _measured(found, "affine", affine.features, say),
        "affine-gamma",
    )


def _decouples(found: Found, say: Say) -> Answer:
    return Answer(
        say("Why does this decouple the layers?", "为什么这样能使各层解耦？"),
        say(
            "Because the mean and the variance of what a layer passes on depend on its own beta and gamma alone, "
            "whatever the layers before it do. ",
            "因为一层输出的均值和方差只取决于它自己的 beta 和 gamma，与前面的层做什么无关。",
        )
        + _measured(found, "scale", scale.moments, say)
        + say(" ", "")
        + _measured(found, "shift", shift.smaller, say),
        "shift-depth",
    )


def _is_it_the_shift(found: Found, say: Say) -> Answer:
    network = shift.deepest(found["shift"])
    return Answer(
        say('Is "internal covariate shift" the reason?', "“内部协变量偏移”就是原因吗？"),
        say(
            "The control of Santurkar et al. 2018 says no more than this: put shift back in behind the "
            "normalization, and see whether training suffers. ",
            "Santurkar 等（2018）的对照实验：在归一化之后把偏移重新加回来，看训练是否变差。",
        )
        + shift.control(found["shift"], network, say).sentence,
        "shift-noise",
    )


def _slips(found: Found, say: Say) -> tuple[Answer, ...]:
    """What explanations of the paper get wrong, and what is meant."""
    return (
        Answer(
            say('"Divide by the variance"?', "“除以方差”？"),
            say(
                "By the standard deviation, sqrt(var + eps): only then does the output have variance 1.",
                "应除以标准差 sqrt(var + eps)：只有这样输出的方差才是 1。",
            ),
            "scale-eps" if "scale" in found else "",
        ),
        Answer(
            say("Is gamma the variance of the output?", "gamma 是输出的方差吗？"),
            say(
                "It is its standard deviation: the variance is gamma^2 * var/(var + eps). beta is its mean.",
                "它是输出的标准差：方差为 gamma^2 * var/(var + eps)。beta 是输出的均值。",
            ),
            "scale-identity" if "scale" in found else "",
        ),
        Answer(
            say("Is a batch of vectors a convolution?", "一批向量算卷积吗？"),
            say(
                "No. A fully connected layer has (batch, features) and takes one mean and variance per feature "
                "over the batch. A convolution has (batch, channels, height, width) and takes them per channel "
                "over the batch and all positions.",
                "不算。全连接层的输入为 (batch, features)，每个特征在批次上取一个均值和方差；卷积的输入为 "
                "(batch, channels, height, width)，每个通道在批次和所有位置上取。",
            ),
        ),
        Answer(
            say(
                "Which shape have the statistics, and where do eps and momentum come from?",
                "统计量是什么形状？eps 和 momentum 从哪里来？",
            ),
            say(
                "For x of shape (B, L) the statistics are over the batch and have shape (L,), not (B,). eps, "
                "momentum and the running statistics stand in bn_param: "
                "y, bn_param = batchnorm_train(x, gamma, beta, bn_param).",
                "对形状为 (B, L) 的 x，统计量在批次上计算，形状为 (L,)，而不是 (B,)。eps、momentum 和滑动统计量"
                "都在 bn_param 中：y, bn_param = batchnorm_train(x, gamma, beta, bn_param)。",
            ),
        ),
        Answer(
            say("Is eps part of the recorded variance?", "eps 属于记录的方差吗？"),
            say(
                "One explanation defines sigma^2 = var + eps and averages that; prediction must then not add eps "
                "again. Here var is recorded without eps, and eps is added once, at the division. ",
                "有一种写法定义 sigma^2 = var + eps 并对它取平均；这样预测时就不能再加 eps。这里记录的 var "
                "不含 eps，只在相除时加一次。",
            )
            + _measured(found, "inference", inference.eps_once, say),
        ),
    )
