"""Wrong answers: found, named and left out."""

from experiments.errors.wrong_answers import wrong_answers

__all__ = ["wrong_answers"]
