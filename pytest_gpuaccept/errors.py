"""The errors of this package.

    GpuAcceptError
      InputError       a profile, card, bundle or option that cannot be used: exit status 4
      Unmeasurable     raised inside a probe or a derivation: becomes a NotMeasured, hence ERROR

Bad input is a usage error, bad hardware is a verdict; neither is ever a traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class GpuAcceptError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(GpuAcceptError):
    """Input that a person must correct; the message names the place and what to do."""


class Unmeasurable(GpuAcceptError):  # noqa: N818 - it is an outcome, not a defect of the program
    """A value could not be had; the message is the reason that the verdict will show."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the nearest known word, or '' when none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
