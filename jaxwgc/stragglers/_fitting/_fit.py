"""Fitting of delay models to measured times."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc.stragglers._combined_delays import affine, markov, unequal_speeds
from jaxwgc.stragglers._fitting._likelihood import Component, Measured, Model, forms
from jaxwgc.stragglers._fitting._most_likely import Kind
from jaxwgc.stragglers._fitting._uncertainty import (
    parameters_of,
    predictive,
    standard_errors,
    unbiased,
)
from jaxwgc.stragglers._independent_delay import IndependentDelay
from jaxwgc.stragglers._laws import (
    gamma,
    log_normal,
    pareto,
    shifted_exponential,
    weibull,
)
from jaxwgc.stragglers._models import DelayModel
from jaxwgc.traces._measured_times import measured_times

# Difference of log-likelihoods above which one model is better: odds of 100 to 1.
_DECISIVE = np.log(100)
# Fraction of the rounds of each load that is held out to rank models: the last rounds.
_HELD_OUT = 1 / 3
_FAMILIES = (gamma, log_normal, pareto, shifted_exponential, weibull)
# Probabilities of a longer time. Their quantiles are the edges of the cells over which
# a density is integrated.
_LEVELS = np.linspace(0.9, 0.1, 1001)
# Largest error of the integral of a density that is attributed to discretisation.
_LARGEST_ERROR = 0.05
# Relative spread of times below which the density is not checked, because rounding
# errors dominate.
_SMALLEST_SPREAD = 1e-6


class DelayFit(NamedTuple):
    """Fitted delay model, with its parameters and score; see `fit_delays`."""

    name: str
    delay: DelayModel
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    held_out: float

    def __str__(self) -> str:
        """Returns score, name, parameters and known standard errors in one line."""
        numbers = [
            f"{name} {value:.3g} ± {self.standard_errors[name]:.1g}"
            for name, value in self.parameters.items()
        ]
        if isinstance(self.delay, unequal_speeds):
            speeds = self.delay.speeds
            slowest = f"{min(speeds):.3g} (worker {np.argmin(speeds)})"
            numbers.append(f"speeds {slowest} to {max(speeds):.3g}")
        shown = ", ".join(numbers).replace(" ± nan", "")
        return f"{self.held_out:7.3f}  {self.name}: {shown}"


def fit_delays(
    times: Any,
    loads: ArrayLike = 1.0,
    *,
    families: Sequence[type[IndependentDelay]] | None = None,
) -> tuple[DelayFit, ...]:
    """Fits delay models to measured times, and sorts them by quality.

    The method is maximum likelihood. Every family, e.g. `weibull` or `gamma`, is
    fitted with times proportional to the load and affine in it (`affine`; for equal
    loads, with a fixed time). Each is also fitted with two states, fast and slow,
    that last for some rounds (`markov`), and with speeds of the workers
    (`unequal_speeds`).

    Models are ranked by the likelihood of the last third of the rounds of each load,
    after a fit to the other rounds. Models within a factor of a hundred of the best
    likelihood cannot be told apart (Jeffreys) and come first: the one with fewest
    parameters, then that with the largest likelihood of all rounds.

    The lower end of a distribution is estimated below the minimum time, corrected for
    bias. Held-out times may be smaller than the minimum of the others, with the
    probability that one more time is.
    (`bernoulli_slowdown` has two times only, unlike measurements; two states replace
    it.)

    Args:
      times: (rounds, workers) in seconds, in the order of the rounds. NaN or infinity
        if there was no response, i.e. later than all others of the round (censored).
        Alternatively (rounds, workers, parts), the time of each part; they are summed,
        and together have the largest load. Rounded times (fewer than half are distinct)
        are spread at random over their rounding interval.
      loads: Loads of the workers, e.g. `code.loads`: 1 without a code. One number,
        (workers,), (rounds, workers), or anything that broadcasts to it. At least 0,
        and not all 0.
      families: Delay laws to fit: classes with base class `IndependentDelay` that
        define `logpdf` and `logsf`. All such laws of `jaxwgc.stragglers` by default.

    Returns:
      A NamedTuple for each model, with the simplest of the best models first. `print`
      shows it in a line. Its fields are:

      - `name`: family, dependence on the load, and whether workers have two states and
        different speeds;
      - `delay`: delay model, fitted to all rounds;
      - `parameters`: dict of the parameters of its constructors. With speeds they are
        for a worker of speed one, the geometric mean of all speeds;
      - `standard_errors`: dict of their standard errors, from the observed information
        (curvature of the likelihood), with speeds treated as known. NaN for a parameter
        at its bound, or if the times do not identify the parameters;
      - `held_out`: mean log-likelihood per time in the held-out rounds, in nats, for
        the model fitted to the others.

    Raises:
      ValueError: If times are zero or negative, have no axes of rounds (at least 4) and
        workers, or are all equal; if fewer than half of them are finite, or none of a
        worker or of a round; or if loads do not match.
      TypeError: If an argument has the wrong type.

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
      the hundred to one.
    """
    chosen_families = _FAMILIES if families is None else _checked_families(families)
    measured = _measured(times, loads)
    is_held_out = _last_rounds(measured)
    models: list[_Tried] = []
    for family in chosen_families:
        possible_forms = forms(measured)
        if family.least_time == "shift" and len(possible_forms[-1].bounds) == 1:
            # The shift of such a law already is a fixed time. Another is redundant.
            possible_forms = possible_forms[:1]
        simple_models = [
            _tried(measured, is_held_out, Kind(family, form)) for form in possible_forms
        ]
        best = _ranked(simple_models)[0].kind
        two_states = best._replace(has_slow_state=True)
        further_kinds = [two_states]
        if measured.times.shape[1] > 1:
            further_kinds.append(best._replace(has_speeds=True))
            further_kinds.append(two_states._replace(has_speeds=True))
        models.extend(simple_models)
        for kind in further_kinds:
            models.append(_tried(measured, is_held_out, kind))
    return tuple(model.fit for model in _ranked(models))


class _Tried(NamedTuple):
    """Fitted model with its likelihoods, by which models are ranked.

    Attributes:
      kind: Kind of the model.
      num_parameters: Number of free parameters of the model.
      likelihood: Log-likelihood of all times.
      gain: Log-likelihood of all held-out times, for the model of the other rounds.
      fit: The result.
    """

    kind: Kind
    num_parameters: int
    likelihood: float
    gain: float
    fit: DelayFit


def _ranked(models: list[_Tried]) -> list[_Tried]:
    """Sorts models by held-out likelihood, the nearly best ones by simplicity."""
    largest_gain = max(model.gain for model in models)
    nearly_best = []
    others = []
    for model in models:
        if model.gain < largest_gain - _DECISIVE:
            others.append(model)
        else:
            nearly_best.append(model)
    nearly_best.sort(key=lambda model: (model.num_parameters, -model.likelihood))
    others.sort(key=lambda model: -model.gain)
    return nearly_best + others


def _last_rounds(measured: Measured) -> np.ndarray:
    """Returns a mask of the rounds to hold out: the last third of each load."""
    different_loads, load_of_round = np.unique(
        measured.loads, axis=0, return_inverse=True
    )
    num_rounds = len(load_of_round)
    is_last = np.zeros(num_rounds, bool)
    for load in range(len(different_loads)):
        rounds = np.flatnonzero(load_of_round == load)
        num_held_out = round(len(rounds) * _HELD_OUT)
        is_last[rounds[len(rounds) - num_held_out :]] = True
    if not is_last.any():
        # If each load was measured once, the last third of all rounds is held out.
        num_held_out = int(num_rounds * _HELD_OUT)
        is_last[num_rounds - num_held_out :] = True
    return is_last


def _tried(measured: Measured, is_held_out: np.ndarray, kind: Kind) -> _Tried:
    """Fits a model to all rounds, and evaluates it on held-out rounds."""
    first_rounds = measured.at(rounds=~is_held_out)
    start = kind.most_likely(first_rounds)
    # Likelihoods are computed over all rounds, because earlier rounds give information
    # on the states of workers in held-out rounds.
    predicted = predictive(kind, first_rounds, start).log_likelihoods(measured)
    gain = predicted[is_held_out].sum()
    model = kind.most_likely(measured, start)
    for component in model.components:
        _check_density(component.law)
    likelihood = model.log_likelihoods(measured).sum()
    model = unbiased(kind, measured, model)
    fit = DelayFit(
        name=kind.name,
        delay=_delay(kind, model),
        parameters=parameters_of(kind, model),
        standard_errors=standard_errors(measured, kind, model),
        held_out=float(gain / measured.is_whole[is_held_out].sum()),
    )
    return _Tried(
        kind=kind,
        num_parameters=kind.num_parameters(measured.times.shape[1]),
        likelihood=likelihood,
        gain=gain,
        fit=fit,
    )


def _delay(kind: Kind, model: Model) -> DelayModel:
    """Returns the delay model with the parameters of a fitted model."""
    states = [_delay_of_state(kind, component) for component in model.components]
    delay = states[0]
    if kind.has_slow_state:
        delay = markov(
            fast=delay,
            slow=states[1],
            become_slow=model.become_slow,
            become_fast=model.become_fast,
        )
    if kind.has_speeds:
        delay = unequal_speeds(delay, np.asarray(model.speeds))
    return delay


def _delay_of_state(kind: Kind, component: Component) -> DelayModel:
    """Returns the delay model of one state, fast or slow, of a fitted model."""
    if not kind.form.bounds:
        return component.law
    overhead, slope, time = component.load
    return affine(component.law, overhead=overhead, slope=slope, time=time)


def _measured(times: Any, loads: ArrayLike) -> Measured:
    """Checks times and loads; missing times are censored at the last response."""
    array_validation.check_dense("times", times)
    array_validation.check_concrete("times", times, "its entries are checked")
    table = measured_times(times, least_rounds=4)
    checked_loads = array_validation.concrete_array("loads", loads, "real numbers")
    checked_loads = checked_loads.astype(np.float64)
    if table.ndim == 3:
        # The times of parts add up to the time of a worker at the largest load.
        table = table.sum(-1)
        checked_loads = np.max(checked_loads)
    load_of_time = np.broadcast_to(checked_loads, table.shape)
    is_valid = np.all((load_of_time >= 0) & np.isfinite(load_of_time))
    if not is_valid or not load_of_time.any():
        raise ValueError(f"loads must be at least 0, finite and not all 0; got {loads}")
    is_whole = np.isfinite(table)
    _check_responses(is_whole)
    table = _not_rounded(table, is_whole)
    last = np.max(table, axis=1, where=is_whole, initial=0, keepdims=True)
    return Measured(
        times=np.where(is_whole, table, last),
        loads=load_of_time,
        is_whole=is_whole,
        speeds=np.ones(table.shape),
    )


def _check_responses(is_whole: np.ndarray) -> None:
    """Raises ValueError if too few times are finite."""
    if is_whole.mean() < 0.5:
        shares = is_whole.mean(axis=0)
        worker = np.argmin(shares)
        raise ValueError(
            "times must be finite in at least half of all rounds × workers; got "
            f"{is_whole.mean():.0%}, and {shares[worker]:.0%} of worker {worker}. "
            "Leave out the workers with the fewest responses"
        )
    silent_workers = np.flatnonzero(~is_whole.any(axis=0))
    if len(silent_workers):
        raise ValueError(
            "times must have at least one response of every worker; got none of "
            f"workers {silent_workers.tolist()}. Leave these workers out"
        )
    silent_rounds = np.flatnonzero(~is_whole.any(axis=1))
    if len(silent_rounds):
        raise ValueError(
            "times must have at least one response in every round; got none in rounds "
            f"{silent_rounds.tolist()}. Leave these rounds out"
        )


def _not_rounded(table: np.ndarray, is_whole: np.ndarray) -> np.ndarray:
    """Adds noise of one rounding interval to rounded times.

    Times count as rounded if at most half of them are distinct.
    """
    values = np.unique(table[is_whole])
    if len(values) == 1:
        raise ValueError(f"times must not all be equal; got {values}")
    if len(values) > is_whole.sum() / 2:
        return table
    unit = np.diff(values).min()
    spread = unit * np.random.default_rng(0).uniform(-0.5, 0.5, table.shape)
    return np.maximum(table + spread, unit / 2)


def _checked_families(families: Any) -> list[type[IndependentDelay]]:
    """Returns `families` as a list; raises an error unless all can be fitted."""
    if isinstance(families, type) or not isinstance(families, Iterable):
        raise TypeError(
            "families must be a list of delay laws, e.g. [stragglers.weibull]; got "
            f"{validation.in_short(families)}"
        )
    listed = list(families)
    if not listed:
        raise ValueError("families must have at least one delay law; got none")
    for family in listed:
        if not isinstance(family, type) or not issubclass(family, IndependentDelay):
            raise TypeError(
                "families must be classes with base class "
                "jaxwgc.stragglers.IndependentDelay, e.g. stragglers.weibull; got "
                f"{validation.in_short(family)}"
            )
        has_logpdf = family.logpdf is not IndependentDelay.logpdf
        if not has_logpdf or family.logsf is IndependentDelay.logsf:
            raise ValueError(
                "families must define logpdf and logsf to be fitted; got "
                f"{family.__name__}, which does not define both"
            )
        names = family.field_names()
        if family.least_time is not None and family.least_time not in names:
            raise ValueError(
                f"least_time of {family.__name__} must be one of its fields, {names}; "
                f"got {family.least_time!r}"
            )
    return listed


def _check_density(law: IndependentDelay) -> None:
    """Raises ValueError unless a law's density and quantiles agree."""
    with np.errstate(all="ignore"):
        cells = np.asarray(law.isf(_LEVELS), np.float64)
        first = cells[0]
        last = cells[-1]
        if last - first <= _SMALLEST_SPREAD * abs(last):
            return
        density = np.exp(law.logpdf((cells[1:] + cells[:-1]) / 2))
        integral = np.sum(density * np.diff(cells))
    expected = _LEVELS[0] - _LEVELS[-1]
    if not abs(integral - expected) <= _LARGEST_ERROR:
        raise ValueError(
            f"logpdf of {type(law).__name__} must be the log-density that belongs to "
            f"isf. The density must integrate to {expected:.1f} from isf({_LEVELS[0]}) "
            f"= {first:.3g} to isf({_LEVELS[-1]}) = {last:.3g}; got {integral:.3g} for "
            f"{law}"
        )
