"""The report's two languages: every sentence stands in both, side by side, where it is used."""

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Say:
    """Chooses the language.

    >>> Say("zh")("with BN", "有 BN")
    '有 BN'
    """

    language: Language = "en"

    def __call__(self, en: str, zh: str) -> str:
        """The words in this language; neither can be forgotten, since both are arguments."""
        return zh if self.language == "zh" else en

    def listed(self, names: list[str]) -> str:
        """Names in a row, as the language joins them.

        >>> Say("en").listed(["MLP", "CNN", "deep CNN"]), Say("zh").listed(["MLP", "CNN"])
        ('MLP, CNN and deep CNN', 'MLP 和 CNN')
        """
        *first, last = names
        if not first:
            return last
        return self(f"{', '.join(first)} and {last}", f"{'、'.join(first)} 和 {last}")
