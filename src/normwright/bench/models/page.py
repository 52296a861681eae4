"""What was counted, told: two tables, and their shares in sentences, for the terminal and docs/models.md."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from normwright.bench.models.counted import (
    ACTIVATIONS,
    CARRIED,
    NONE,
    OTHERS_RESIDUAL,
    SUM_ALONE,
    Followed,
    document,
    following,
    settings,
)
from normwright.report import markdown
from normwright.report.document import Table

COMMAND = "python -m normwright.bench.models"


def write(page: Path) -> None:
    """Put the words and the tables between the page's markers.

    Raises:
        OSError: the page cannot be read or written.
        ValueError: it has no markers; it stays as it was.
    """
    text = page.read_text(encoding="utf-8")
    text = markdown.put_into(text, "following", f"{in_words()}\n\n{markdown.table(following_table())}")
    text = markdown.put_into(text, "settings", markdown.table(settings_table()))
    page.write_text(text, encoding="utf-8")


def following_table() -> Table:
    """What follows batch norms, by kind."""
    found = following()
    total, frozen = sum(each.layers for each in found), sum(each.frozen for each in found)
    rows = []
    for kind in [*ACTIVATIONS, SUM_ALONE, OTHERS_RESIDUAL, NONE]:
        of = [each for each in found if each.kind == kind]
        if not of and kind not in CARRIED:
            continue
        layers = sum(each.layers for each in of)
        after = sum(each.layers for each in of if each.after_a_residual and kind in ACTIVATIONS)
        cells = (
            layers,
            _percent(layers, total),
            after,
            sum(each.frozen for each in of),
            _architectures(kind),
        )
        rows.append((kind, *map(str, cells)))
    rows.append(("all", str(total), "100 %", "", str(frozen), str(len(document()["models"]))))
    columns = ("what follows", "batch norms", "share", "after a residual", "frozen ones", "architectures")
    return Table("What follows a batch norm", columns, tuple(rows), _made())


def settings_table() -> Table:
    """Activations by the names that configurations give them."""
    found = settings()
    totals = {value: sum(of.values()) for value, of in found.items()}
    total = sum(totals.values())
    rows = tuple(
        (value, str(totals[value]), _percent(totals[value], total), str(found[value].get("hidden_act", 0)))
        for value in sorted(found, key=lambda value: (-totals[value], value))
    )
    rows += (("all", str(total), "100 %", str(sum(of.get("hidden_act", 0) for of in found.values()))),)
    columns = ("activation", "settings", "share", "of these hidden_act")
    return Table("Activations in default configurations", columns, rows, _made())


def in_words() -> str:
    """The shares, in sentences."""
    found = following()
    total, frozen = sum(each.layers for each in found), sum(each.frozen for each in found)

    def share(of: Iterable[Followed]) -> str:
        return _percent(sum(each.layers for each in of), total)

    active = [each for each in found if each.kind in ACTIVATIONS]
    at_once = share(each for each in active if not each.after_a_residual)
    after = share(each for each in active if each.after_a_residual)
    one_by_one = ", ".join(
        f"{kind} {share(each for each in active if each.kind == kind)}"
        for kind in ACTIVATIONS
        if kind in CARRIED or any(each.kind == kind for each in active)
    )
    alone, others, none = (
        share(each for each in found if each.kind == kind) for kind in (SUM_ALONE, OTHERS_RESIDUAL, NONE)
    )
    whole = f"{total} batch norms and {frozen} frozen ones in {len(document()['models'])} architectures."
    return (
        f"{whole} Of the {total}, an activation follows {share(active)}: {at_once} at once, {after} after a "
        f"residual. One by one, with and without a residual: {one_by_one}.\n\n"
        f"A residual and no activation: {alone}. Itself the residual of another batch norm: {others}. "
        f"None of these: {none}; {_nothing(found)}.\n\n{_left_out()}"
    )


def _nothing(found: Iterable[Followed]) -> str:
    """What reads batch norms that neither an activation nor a sum follows."""
    of = Counter({each.then: each.layers for each in found if each.kind == NONE and each.layers})
    several = sum(layers for then, layers in of.items() if "&" in then)
    single = ", ".join(f"{then} {layers}" for then, layers in of.most_common() if "&" not in then)
    return f"{several} of them are read by several operations, the others by one ({single})"


def _left_out() -> str:
    """What was not seen, and why."""
    left_out, seen = document()["left_out"], {model["name"] for model in document()["models"]}
    none = [name for name, reason in left_out.items() if reason == "none by default"]
    return (
        f"Seen in part: {_listed(name for name in left_out if name in seen)}. Not seen, since their default "
        "configuration makes no model, a package is missing, or a forward pass asks for values: "
        f"{_listed(name for name in left_out if name not in seen and name not in none)}. Without batch norm by "
        f"default, though their source has some: {_listed(none)}. The reasons stand in `models.json`."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _percent(of: int, total: int) -> str:
    return f"{100 * of / total:.1f} %" if total else "-"


def _architectures(kind: str) -> int:
    return sum(
        any(Followed(then, 1, 0, 1).kind == kind for then in (*model["then"], *model["frozen_then"]))
        for model in document()["models"]
    )


def _made() -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document()["made_with"].items())
    return f"Made by `{COMMAND}`: {versions}."
