"""Delay models fitted to times that were measured."""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxwgc import _validation
from jaxwgc.stragglers._combined_delays import affine, markov, unequal_speeds
from jaxwgc.stragglers._exponential_delays import pareto, shifted_exponential
from jaxwgc.stragglers._fitting._ends import predictive, unbiased
from jaxwgc.stragglers._fitting._likelihood import Measured, Model, forms
from jaxwgc.stragglers._fitting._most_likely import Kind
from jaxwgc.stragglers._fitting._standard_errors import parameters_of, standard_errors
from jaxwgc.stragglers._smooth_delays import log_normal, weibull
from jaxwgc.stragglers._types import DelayModel

FAMILIES = shifted_exponential, pareto, weibull, log_normal
# Between logarithms of likelihoods: the evidence of a hundred to one.
_DECISIVE = np.log(100)


class DelayFit(NamedTuple):
    """A delay model that was fitted, and how well it fits.

    Attributes:
      name: its family, how it depends on the load, and whether workers have two states
        and speeds of their own.
      delay: the delay model, fitted to all rounds.
      parameters: of its constructors, by name; with speeds of the workers those of a
        worker of speed one, the geometric mean of all.
      standard_errors: of the parameters, by the curvature of the likelihood (the
        observed information), of which speeds with that mean leave as much as if they
        were known. NaN where it has none to give: at a parameter that is at the end of
        what is possible, and where the times do not tell parameters apart.
      held_out: mean logarithm of the likelihood of a time in the rounds that were held
        out, in nats, of the model fitted to the others.
      distance: the Kolmogorov-Smirnov distance of those times from what that model
        predicts: the largest difference of probabilities.
      p_value: of a distance as large, had the model given the times, independently.
    """

    name: str
    delay: DelayModel
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    held_out: float
    distance: float
    p_value: float

    def __str__(self) -> str:
        """Returns how good it is, what it is, its parameters and their known errors."""
        numbers = [
            f"{name} {value:.3g} ± {self.standard_errors[name]:.1g}"
            for name, value in self.parameters.items()
        ]
        if isinstance(self.delay, unequal_speeds):
            speeds = self.delay.speeds
            slow = f"{min(speeds):.3g} (worker {np.argmin(speeds)})"
            numbers.append(f"speeds {slow} to {max(speeds):.3g}")
        shown = ", ".join(numbers).replace(" ± nan", "")
        return f"{self.held_out:7.3f} {self.distance:6.3f}  {self.name}: {shown}"


def fit_delays(
    times: Any, loads: Any = 1.0, *, in_order: bool = True, held_out: float = 1 / 3
) -> tuple[DelayFit, ...]:
    """Fits delay models to measured times by maximum likelihood, the best one first.

    Every family (`shifted_exponential`, `pareto`, `weibull`, `log_normal`) is tried
    with times in proportion to the load and affine in it (`affine`; with equal loads,
    after a fixed time); then each with two states, fast and slow, that last for some
    rounds (`markov`), and with speeds of the workers (`unequal_speeds`). They are
    ranked by the likelihood of the last rounds of each load, for models of the others.
    Those that are at least a hundredth as likely as the best come before the rest, the
    one with the fewest parameters first, and of these that of the largest likelihood of
    all rounds: what was held out does not tell them apart (Jeffreys).

    The end of a law that has one lies before the least time: by as much as that is
    beyond it on average. What is held out may come before the least time of the others,
    with the probability that one more time does.
    (`bernoulli_slowdown` has two times, which measured ones never are; two states
    stand for it.)

    Args:
      times: (rounds, workers) in seconds; NaN or infinity where no answer came, of
        which is known only that it would have come after all others of the round. Or
        (rounds, workers, parts), the time of each part, which are added, and are all of
        them the largest load. Times that were rounded (fewer than half of them differ)
        are spread evenly over what they were rounded from.
      loads: the loads that workers had, such as `code.loads`: 1 without a code. One
        number, (workers,) or (rounds, workers), or anything that broadcasts to it. At
        least 0, and not all 0.
      in_order: whether rounds followed each other, so that slow spells can be seen.
        Otherwise the states of a worker in two rounds are independent.
      held_out: the share of the rounds of each load, the last ones, by which models are
        ranked.

    Returns:
      A `DelayFit` for each model, the simplest of the best first.

    Raises:
      ValueError: where times are zero or negative, or without an axis of rounds (at
        least 4) and of workers, all are equal, or more than half are missing, or all of
        a round or a worker; or where loads do not fit.
      TypeError: where an argument has the wrong type.

    Example:
      >>> import numpy as np
      >>> from jaxwgc import stragglers
      >>> times = np.random.default_rng(0).lognormal(0.0, 0.5, (40, 10))
      >>> best = stragglers.fit_delays(times)[0]
      >>> best.name, round(best.parameters["deviation"], 1)
      ('log_normal, proportional to the load', 0.5)

    References:
      Rabiner, "A tutorial on hidden Markov models and selected applications in speech
      recognition", 1989, for the chain; Jeffreys, "Theory of probability", 1961, for
      the hundred to one; Kaplan, Meier, "Nonparametric estimation from incomplete
      observations", 1958, for the distance with missing times.
    """
    measured = _measured(times, loads)
    _validation.check_bool("in_order", in_order)
    _validation.check_share("held_out", held_out)
    tried = functools.partial(_tried, measured, _last_rounds(measured, held_out))
    models: list[_Tried] = []
    for family in FAMILIES:
        # A fixed time in proportion to the load is what the exponential has anyway.
        ways = forms(measured)
        if family is shifted_exponential and len(ways[-1].bounds) == 1:
            ways = ways[:1]
        simple = [tried(Kind(family, form)) for form in ways]
        best = _ranked(simple)[0].kind
        slow = best._replace(has_slow_state=True, in_order=in_order)
        further = [slow]
        if measured.times.shape[1] > 1:
            further += [kind._replace(has_speeds=True) for kind in (best, slow)]
        models += [*simple, *map(tried, further)]
    return tuple(_fitted(measured, model) for model in _ranked(models))


class _Tried(NamedTuple):
    """A model of all rounds, and how that of the first fares in those held out.

    Attributes:
      kind: of it.
      model: of largest likelihood in all rounds.
      num_parameters: of it.
      likelihood: logarithm of that.
      gain: logarithm of the likelihood of all times held out, for that of the others.
      held_out: its mean, the distance and the p-value.
    """

    kind: Kind
    model: Model
    num_parameters: int
    likelihood: float
    gain: float
    held_out: tuple[float, float, float]


def _ranked(models):
    """Those that are as good as the best first, the simplest of them before others."""
    best = max(model.gain for model in models)

    def place(model):
        if model.gain < best - _DECISIVE:
            return 1, -model.gain, 0
        return 0, model.num_parameters, -model.likelihood

    return sorted(models, key=place)


def _last_rounds(measured, share):
    """Mask (rounds,) of the last ones of each load, at least one and not all."""
    _, load = np.unique(measured.loads, axis=0, return_inverse=True)
    is_last = np.zeros(len(load), bool)
    for number in range(load.max() + 1):
        rounds = np.flatnonzero(load == number)
        count = min(max(int(round(len(rounds) * share)), 1), len(rounds) - 1)
        is_last[rounds[len(rounds) - count :]] = True
    if not is_last.any():
        # Of loads that were all measured once.
        is_last[-max(int(len(load) * share), 1) :] = True
    return is_last


def _tried(measured, is_held_out, kind):
    first = Measured(*(array[~is_held_out] for array in measured))
    start = kind.most_likely(first)
    model = predictive(kind, first, start)
    # The rounds before tell in which states workers are.
    is_whole = measured.is_whole[is_held_out]
    gain = model.log_likelihoods(measured)[is_held_out].sum()
    survivals = np.exp(model.log_survivals(measured)[is_held_out])
    # What remains of them by Kaplan and Meier is the probability itself, if it fits.
    levels = scipy.stats.CensoredData.right_censored(
        1 - survivals.ravel(), ~is_whole.ravel()
    )
    curve = scipy.stats.ecdf(levels).cdf
    before = np.concatenate([[0.0], curve.probabilities[:-1]])
    distance = np.abs([curve.probabilities - curve.quantiles, before - curve.quantiles])
    largest = float(distance.max())
    p_value = float(scipy.special.kolmogorov(largest * np.sqrt(is_whole.sum())))
    whole = kind.most_likely(measured, start)
    return _Tried(
        kind,
        whole,
        kind.num_parameters(measured.times.shape[1]),
        whole.log_likelihoods(measured).sum(),
        gain,
        (float(gain / is_whole.sum()), largest, p_value),
    )


def _fitted(measured, tried):
    """The model of all rounds, with what is told of it."""
    kind = tried.kind
    model = unbiased(kind, measured, tried.model)
    name = f"{kind.family.__name__}, {kind.form.name}"
    name += ", two states" * kind.has_slow_state + ", speeds" * kind.has_speeds
    return DelayFit(
        name,
        _delay(kind, model),
        parameters_of(kind, model),
        standard_errors(measured, kind, model),
        *tried.held_out,
    )


def _delay(kind, model):
    """The delay model, made by the public constructors."""
    states = [component.law for component in model.components]
    if kind.form.bounds:
        states = [
            affine(component.law, component.overhead, component.slope, component.time)
            for component in model.components
        ]
    delay, slow = states[0], states[-1]
    if kind.has_slow_state:
        delay = markov(delay, slow, model.become_slow, model.become_fast)
    if kind.has_speeds:
        delay = unequal_speeds(delay, model.speeds)
    return delay


def _measured(times, loads):
    """Checked, in float64, with what is missing put after all others of its round."""
    table = _validation.measured_times(times, least_rounds=4)
    given = _validation.concrete_array("loads", loads, "real numbers")
    if table.ndim == 3:
        table, given = table.sum(-1), np.max(given)
    shared = np.broadcast_to(given.astype(np.float64), table.shape)
    is_right = np.all((shared >= 0) & np.isfinite(shared)) and shared.any()
    _validation.require(is_right, "loads", "be at least 0, finite and not all 0", loads)
    is_whole = np.isfinite(table)
    share, silent = is_whole.mean(), (~is_whole.any(axis=1)).sum()
    rule = "have a response in every round, and at least half of all"
    given = f"{share:.0%} and none in {silent} rounds"
    _validation.require(silent == 0 and share >= 0.5, "times", rule, given)
    responds = is_whole.any(axis=0)
    rule = "have a response of every worker: leave out those that never respond"
    given = f"none of worker {responds.argmin()}"
    _validation.require(responds.all(), "times", rule, given)
    table = _not_rounded(table, is_whole)
    last = np.max(table, axis=1, where=is_whole, initial=0, keepdims=True)
    return Measured(np.where(is_whole, table, last), shared, is_whole)


def _not_rounded(table, is_whole):
    """Equal times spread over the interval that is rounded to them."""
    values, place = np.unique(table[is_whole], return_inverse=True)
    _validation.require(len(values) > 1, "times", "differ", values)
    if len(values) > len(place) / 2:
        return table
    unit = np.diff(values).min()
    # A sequence that fills the interval evenly, however many of it are taken.
    order = np.argsort(place, kind="stable")
    rank = np.empty(len(place))
    rank[order] = np.arange(len(place)) - np.searchsorted(place[order], place[order])
    golden = (np.sqrt(5) - 1) / 2
    spread = table.copy()
    spread[is_whole] += unit * ((rank + 0.5) * golden % 1 - 0.5)
    return np.where(spread > 0, spread, unit / 2)
