"""Kinds of models, and the search for the maximum-likelihood model."""

from typing import NamedTuple

import numpy as np

from jaxwgc.stragglers._distributions import NO_WEIGHT, Sample
from jaxwgc.stragglers._fitting._likelihood import (
    Component,
    Form,
    Measured,
    Model,
    mixed,
    predictions,
    responsibilities,
)
from jaxwgc.stragglers._independent_delay import IndependentDelay

# Number of EM iterations from scratch and from a nearby model, and the gain in mean
# log-likelihood below which they stop.
_ITERATIONS = 40
_MORE_ITERATIONS = 15
_GAIN = 1e-4
# Maximum number of measured times in the first, coarse search.
_ENOUGH = 4000
# Fractions of slow times from which the search starts.
_SLOW_SHARES = (0.05, 0.2)
_SPEED_ITERATIONS = 4
# Logarithms of factors tried on each worker's speed, first coarse, then fine.
_SPEED_GRIDS = (np.linspace(-0.3, 0.3, 31), np.linspace(-0.02, 0.02, 21))


class Kind(NamedTuple):
    """Kind of model to fit.

    Attributes:
      family: Family of delay models.
      form: Dependence of times on the load.
      has_slow_state: Whether workers have two states.
      has_speeds: Whether workers have different speeds.
      in_order: Whether rounds are consecutive, so that states last.
    """

    family: type[IndependentDelay]
    form: Form
    has_slow_state: bool = False
    has_speeds: bool = False
    in_order: bool = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fitted parameters of the family."""
        return self.family.fitted_fields()

    @property
    def ends_at_least_time(self) -> bool:
        """Returns whether the minimum time estimates the distribution's lower end."""
        return self.family.least_time is not None and not self.form.bounds

    def num_parameters(self, num_workers: int) -> int:
        """Returns the number of free parameters, including all speeds but one."""
        number = len(self.parameters) + len(self.form.bounds)
        if self.has_slow_state:
            number = 2 * number + 1 + self.in_order
        return number + (num_workers - 1) * self.has_speeds

    def most_likely(self, measured: Measured, start: Model | None = None) -> Model:
        """Searches for the maximum-likelihood model, from `start` if it is given."""
        step = -(-measured.times.size // _ENOUGH)
        if start is None and step > 1:
            some = Measured(*(array[:, ::step] for array in measured))
            start = self._replace(has_speeds=False)._search(some, None)
        return self._search(measured, start)

    def _search(self, measured, start):
        if not self.has_speeds:
            return _at_one_speed(measured, self, start)
        if start is None or np.ndim(start.speeds) == 0:
            # Speeds relative to the median worker of each round.
            logs = np.log(measured.times)
            logs = logs - np.median(logs, axis=1, keepdims=True)
            speeds = np.exp(-np.median(logs, axis=0))
        else:
            speeds = start.speeds
        for _ in range(_SPEED_ITERATIONS):
            start = _at_one_speed(measured.at_speed(speeds), self, start)
            speeds = _better_speeds(measured, start, speeds)
        assert start is not None
        return start._replace(speeds=speeds)


def _at_one_speed(measured, kind, start):
    everything = np.ones(measured.times.shape)
    if not kind.has_slow_state:
        before = None if start is None else start.components[0]
        return Model((_component(measured, everything, kind, before),))
    if start is not None:
        return _two_states(measured, kind, start, _MORE_ITERATIONS)
    single = _component(measured, everything, kind, None)
    tails = single.log_survivals(measured)
    models = []
    for share in _SLOW_SHARES:
        is_slow = tails < np.quantile(tails, share)
        groups = ~is_slow, is_slow
        parts = (_component(measured, 1.0 * own, kind, single) for own in groups)
        share = float(is_slow.mean())
        parted = Model(tuple(parts), share, 1 - share)
        models.append(_two_states(measured, kind, parted, _ITERATIONS))
    return max(models, key=lambda model: model.log_likelihoods(measured).sum())


def _two_states(measured, kind, model, num_iterations):
    """Fits a model with two states by expectation maximisation."""
    last = -np.inf
    for _ in range(num_iterations):
        logs = np.stack([each.log_likelihoods(measured) for each in model.components])
        mean = predictions(logs, *model[1:3])[1].mean()
        if mean < last + _GAIN:
            break
        last = mean
        slow, become_slow, become_fast = responsibilities(logs, *model[1:3])
        if not kind.in_order:
            become_slow = float(np.clip(slow.mean(), 1e-6, 1 - 1e-6))
            become_fast = 1 - become_slow
        pairs = zip((1 - slow, slow), model.components)
        components = (_component(measured, own, kind, each) for own, each in pairs)
        model = Model(tuple(components), become_slow, become_fast)
    return model


def _component(measured, weights, kind, start):
    """Fits a component to weighted times, by a search over its load parameters."""
    from scipy import optimize

    family = kind.family
    form = kind.form
    flat = Measured(*(array.ravel() for array in measured))
    whole_weight = float(np.sum(weights * measured.is_whole))
    num_parameters = kind.num_parameters(measured.times.shape[1])
    if kind.has_slow_state and start is not None and whole_weight < num_parameters:
        # The likelihood is unbounded if a state shrinks to one time, or if speeds make
        # one time of each worker equal.
        return start
    weights = weights.ravel()
    kept = 1 - kind.has_speeds / max(len(measured.times), 2)

    def made(free, near):
        component = Component(family, form.load(tuple(map(float, free))))
        units = np.maximum(component.units(flat)[0], 1e-300)
        sample = Sample(units, weights, flat.is_whole, kept)
        return component._replace(parameters=family.estimate(sample, near))

    def cost(free):
        component = made(free, near)
        if not all(np.isfinite(component.parameters)):
            return 1e10
        logs = component.log_likelihoods(flat)
        mean = np.sum(weights * np.where(weights > NO_WEIGHT, logs, 0)) / whole_weight
        return -mean if np.isfinite(mean) else 1e10

    near = None if start is None else start.parameters
    if not form.bounds:
        return made((), near)
    spread = 0.3 if start is None else 0.05
    low, high = np.array(form.bounds).T
    first = (low + high) / 2 if start is None else start.load[-len(form.bounds) :]
    first = np.clip(first, low + 1e-3 * (high - low), high - 1e-3 * (high - low))
    # Steps point to the middle of the bounds, so that the simplex stays within them.
    ways = np.where(first < (low + high) / 2, 1, -1) * spread * (high - low)
    simplex = np.vstack([first, first + np.diag(ways)])
    near = made(first, near).parameters
    options = {"maxfev": 150 if start is None else 20, "xatol": 1e-4, "fatol": 1e-7}
    options["initial_simplex"] = simplex
    search = {"method": "Nelder-Mead", "bounds": form.bounds, "options": options}
    best = optimize.minimize(cost, first, **search)
    return made(best.x, near)


def _better_speeds(measured, model, speeds):
    """Maximises the likelihood over each speed; normalises the geometric mean to 1."""
    for grid in _SPEED_GRIDS:
        tried = speeds * np.exp(grid)[:, None, None]
        # The leading axis holds the candidate speeds.
        moved = Measured(*np.broadcast_arrays(*measured._replace(speeds=tried)))
        logs = [component.log_likelihoods(moved) for component in model.components]
        likelihoods = mixed(model.slow_share, logs)
        best = np.maximum(likelihoods, -1e6).sum(1).argmax(0)
        speeds = speeds * np.exp(grid)[best]
    return speeds / np.exp(np.mean(np.log(speeds)))
