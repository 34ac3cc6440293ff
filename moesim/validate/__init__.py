"""The model against published measurements: what it says beside what was measured, and beside obvious guesses."""

from moesim.validate.rows import Case, Skip
from moesim.validate.run import FAMILIES, validate
from moesim.validate.score import Result, Score

__all__ = ["FAMILIES", "Case", "Result", "Score", "Skip", "validate"]
