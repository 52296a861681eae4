"""The readers' questions: each is answered where its experiment ran, from that experiment's records."""

from dataclasses import replace

import pytest

from normwright.report import laboratory, questions
from normwright.report.result import Result
from tiny_lab import EN, ZH, measure

ASKED = ("scale", "affine", "shift", "inference")


@pytest.fixture(scope="module")
def found() -> dict[str, Result]:
    from normwright.lab.registry import EXPERIMENTS

    return {name: measure(EXPERIMENTS[name])[0] for name in ASKED}


def test_every_open_question_is_answered_with_a_picture_that_there_is(found):
    drawn = {
        picture.name
        for name, result in found.items()
        for picture in laboratory.CARDS[name](result, EN).pictures
    }
    told = questions.answers(found, EN)
    for words in ("eps come from", "gamma and beta learned", "per neuron", "decouple", "features destroyed"):
        (answer,) = (answer for answer in told if words in answer.question)
        assert answer.picture in drawn
    assert {answer.picture for answer in told} <= drawn | {""}


def test_an_answer_says_what_the_records_say(found):
    what = "constant channels"
    scale = found["scale"]
    changed = [replace(r, value=12345.0) if r.what == what else r for r in scale.records]
    before, after = (
        questions.answers({"scale": each}, EN)[0].answer for each in (scale, replace(scale, records=changed))
    )
    assert "12345" not in before
    assert "12345" in after


def test_without_its_experiment_a_question_is_not_answered_from_thin_air():
    told = questions.answers({}, EN)
    assert all(not answer.picture for answer in told)
    assert not any("decouple" in answer.question for answer in told)


def test_both_languages_ask_the_same(found):
    english, chinese = questions.answers(found, EN), questions.answers(found, ZH)
    assert [a.picture for a in english] == [a.picture for a in chinese]
    for answer in chinese:
        assert any("\u4e00" <= sign <= "\u9fff" for sign in answer.question)
        assert any("\u4e00" <= sign <= "\u9fff" for sign in answer.answer)
