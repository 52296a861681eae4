"""How commands show what they take, and who tells what was wrong with it: rank 0, where there are ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from normwright.cli.torchrun import leave_to_rank_0


@contextmanager
def _told_once() -> Iterator[None]:
    """What is wrong with the words of the command line ends every rank with the same code, and rank 0 tells it."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "exit_code", None)  # of errors of usage, and of what leaves without one
        if code:
            leave_to_rank_0(code)
        raise


class _Shown:
    """Usage lines as `--out FILE [OPTIONS] NAME`, without braces; flags take no value, and none is shown."""

    def get_params(self, ctx: Any) -> Any:
        """All options and arguments."""
        params = super().get_params(ctx)  # type: ignore[misc]  # of what this is mixed into
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def collect_usage_pieces(self, ctx: Any) -> Any:
        """What follows the command's name: first the options that must be given."""
        needed = [each for each in self.get_params(ctx) if isinstance(each, TyperOption) and each.required]
        pieces = [f"{option.opts[0]} {option.metavar}" for option in needed]
        return pieces + [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]  # type: ignore[misc]

    def parse_args(self, ctx: Any, args: Any) -> Any:
        """The words that follow it, read."""
        with _told_once():
            return super().parse_args(ctx, args)  # type: ignore[misc]


class Command(_Shown, TyperCommand):
    """A command."""


class Group(_Shown, TyperGroup):
    """A command that has commands."""

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """The command that is named."""
        with _told_once():
            return super().resolve_command(ctx, args)
