"""What goes wrong while a backbone is made. One base, so that the command line can say it in one line.

PretrainingError
├── RecipeError       the recipe file is not a recipe
├── RefusedRows       rows were asked for that may not be read for this purpose
└── WorkError         the work folder does not hold what this stage needs, or holds something else
"""


class PretrainingError(Exception):
    """Base of everything raised on purpose."""


class RecipeError(PretrainingError):
    """A recipe that cannot be followed: an unknown key, a missing one, numbers that contradict each other."""


class RefusedRows(PretrainingError):
    """Rows that this purpose may not see: dev and test rows while training, any row of a set held out."""


class WorkError(PretrainingError):
    """The work folder lacks the result of an earlier stage, or it belongs to another recipe, or is damaged."""
