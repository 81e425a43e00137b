"""The one exception for everything a user can mend."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: a wrong key, a missing file, a hub that cannot be reached.

    Holds every problem found, not only the first. The command line prints them one a line, without a traceback, and
    exits with status 2.

    Args:
        problems: one message each: what was wrong, where (file and line for data), and what to do.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:
        return type(self), (self.problems,)


class Incompatible(str):
    """A problem of a combination of task, backbone and method, each sound by itself: a sweep leaves it out, and says so."""

    __slots__ = ()


def all_incompatible(problems: list[str]) -> bool:
    """Whether there are problems, and none but of the combination."""
    return bool(problems) and all(isinstance(problem, Incompatible) for problem in problems)
