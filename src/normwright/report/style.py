"""Colours and type, decided once: the page and every picture take them from here."""

from typing import Any

# The two sides are Okabe and Ito's vermilion and blue, the other tones from their set too, darkened until words
# in them are readable (4.5 to 1 and more). Nothing is told by colour alone: every line has its name at its end.
LIGHT = {
    "paper": "#f4f5f7",
    "card": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "faint": "#8a9099",
    "line": "#d9dde2",
    "without": "#b84e00",
    "with": "#0072b2",
    "third": "#007a58",
    "fourth": "#9c3f86",
    "fifth": "#7d6500",
    "good": "#1a7f4b",
    "part": "#8a6100",
    "bad": "#b3261e",
}
DARK = {
    "paper": "#101317",
    "card": "#181c21",
    "ink": "#e8eaed",
    "soft": "#a6adb6",
    "faint": "#7d8590",
    "line": "#30363d",
    "without": "#f0883e",
    "with": "#58a6e8",
    "third": "#3fc79a",
    "fourth": "#e08ccb",
    "fifth": "#d4b83a",
    "good": "#56c98a",
    "part": "#e0b040",
    "bad": "#ff8078",
}
PRINT = {
    **LIGHT,
    "paper": "#fff",
    "card": "#fff",
    "ink": "#000",
    "soft": "#444",
    "faint": "#777",
    "line": "#bbb",
}

FONT = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", '
    '"Noto Sans CJK SC", sans-serif'
)

# What pictures are drawn in; on a page each becomes the style sheet's variable of that name.
INK, FAINT = LIGHT["ink"], LIGHT["faint"]
WITHOUT, WITH = LIGHT["without"], LIGHT["with"]
THIRD, FOURTH, FIFTH = LIGHT["third"], LIGHT["fourth"], LIGHT["fifth"]
DRAWN = ("ink", "faint", "without", "with", "third", "fourth", "fifth")

WIDTH, HEIGHT = 4.7, 3.3  # inches; so small that its type stays readable on a phone
MATPLOTLIB: dict[Any, Any] = {
    "svg.hashsalt": "normwright",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.formatter.use_mathtext": False,
}


def variables(tones: dict[str, str]) -> str:
    """The tones as declarations of CSS variables."""
    return " ".join(f"--{name}: {tone};" for name, tone in tones.items())


def css() -> str:
    """The variables on light paper, on dark paper, and in print."""
    return (
        f":root {{ {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}\n"
        f"@media print {{ :root {{ {variables(PRINT)} }} }}"
    )
