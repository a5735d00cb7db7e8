"""Records of what `check_step` measures, from which it tells mistakes."""

from typing import NamedTuple

# Relative rounding error of a gradient, also in bfloat16.
TOLERANCE = 0.02


class LossMeasures(NamedTuple):
    """Measures of whether a loss is a sum over weighted rows.

    Attributes:
      missed: Relative difference between the gradient of twice as many rows and the sum
        of the gradients of both halves.
      is_sum: Whether that difference is rounding.
      is_mean: Whether the gradient is instead the mean of both halves.
      constant: Norm of the gradient without any rows.
      num_padding: Number of rows of weight 0.
      padding: Norm of the gradient of the rows of weight 0.
      is_unweighted: Whether row weights of 2 do not change the gradient.
    """

    missed: float
    is_sum: bool
    is_mean: bool
    constant: float
    num_padding: int
    padding: float
    is_unweighted: bool


class GradientMeasures(NamedTuple):
    """The decoded gradient of all parts, compared with the gradient on the data.

    Attributes:
      num_stragglers: Number of stragglers that the code tolerates.
      total: Sum of the weights of all parts.
      scale: Norm of the partial gradients.
      not_finite: Which gradients are not finite, in words; empty if all are.
      ratio: Norm of the decoded gradient, relative to the gradient on the data.
      error: Norm of the difference, relative to the gradient on the data.
      agrees: Whether the weighted sum of the partial gradients is the gradient on the
        data, up to rounding. If it is, the loss is right.
      is_wrong: Whether the code promises a smaller difference.
      is_sample: Whether parts hold fewer rows than the data.
      is_weighted: Whether the weights of a sample represent all rows.
      num_held: Number of rows in the parts.
      num_rows: Number of rows of the data.
      represented: Sum of the weights of the rows in the parts, relative to num_rows.
      deviation: Standard error of `represented`.
    """

    num_stragglers: int
    total: float
    scale: float
    not_finite: str
    ratio: float
    error: float
    agrees: bool
    is_wrong: bool
    is_sample: bool
    is_weighted: bool
    num_held: int
    num_rows: int
    represented: float
    deviation: float

    @property
    def needs_cause(self) -> bool:
        """Whether the loss is the cause of another gradient than that on the data."""
        return not self.agrees and self.not_finite == ""


class OrderMeasures(NamedTuple):
    """Effects of transformations before the aggregator; zero unless measured.

    Attributes:
      unequal: Relative difference between updates from two sets of partial gradients
        with equal sums.
      added: Relative difference between updates from partial gradients of zero, if all
        workers respond and if none responds.
    """

    unequal: float = 0.0
    added: float = 0.0


class RoundMeasures(NamedTuple):
    """Measures of rounds if most of them fail; zero unless measured.

    Attributes:
      is_constant: Whether the same workers respond in each round, and the others would
        be enough; or whether no worker responds.
      is_early: Whether rounds end with too few responses for another reason.
      num_failed: Number of rounds that cannot be decoded.
      num_rounds: Number of rounds.
      num_workers: Number of workers.
      num_enough: Number of responses with which the code decodes.
      fewest: Smallest number of responses.
      most: Largest number of responses.
    """

    is_constant: bool = False
    is_early: bool = False
    num_failed: int = 0
    num_rounds: int = 0
    num_workers: int = 0
    num_enough: int = 0
    fewest: int = 0
    most: int = 0

    @property
    def responses(self) -> str:
        """Numbers of responses, in words."""
        if self.fewest == self.most:
            return str(self.most)
        return f"{self.fewest} to {self.most}"


class Measures(NamedTuple):
    """All measurements of a step.

    Attributes:
      loss: Measurements of the loss.
      gradient: Measurements of the decoded gradient.
      order: Measurements of an optimizer.
      rounds: Measurements of the rounds with the largest share of failures.
      is_dropped: Whether `step` returns the old state of the aggregator.
    """

    loss: LossMeasures
    gradient: GradientMeasures
    order: OrderMeasures = OrderMeasures()
    rounds: RoundMeasures = RoundMeasures()
    is_dropped: bool = False
