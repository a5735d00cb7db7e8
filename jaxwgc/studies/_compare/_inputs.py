"""Names, codes, delay models and waiting rules of a comparison."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import DelayModel, WaitingRule, delayed
from jaxwgc.studies._simulation._program_arguments import with_one_decoder


class Inputs(NamedTuple):
    """Checked arguments of `compare`.

    Attributes:
      codes: Codes by name, each with the decoder of the study as its only decoder.
      delays: Delay models by name.
      rules: For the name of each waiting rule, the rule of each code, in their order.
      late: See `compare`.
    """

    codes: dict[str, GradientCode]
    delays: dict[str, DelayModel]
    rules: dict[str, tuple[WaitingRule, ...]]
    late: str

    @property
    def num_workers(self) -> int:
        """Number of workers, n, of every code."""
        return next(iter(self.codes.values())).num_workers


def checked_inputs(
    codes: Any, delays: Any, waiting: Any, late: str, decoder: Any
) -> Inputs:
    """Returns the names and objects of a comparison; see `compare` for errors."""
    _validation.check_choice("late", late, ("cancelled", "busy"))
    named_codes = _named("codes", codes, _code_labels)
    for code in named_codes.values():
        GradientCode.check(code, concrete="a study runs on the host")
    num_workers = {name: code.num_workers for name, code in named_codes.items()}
    if len(set(num_workers.values())) > 1:
        raise ValueError(
            f"codes must have the same number of workers; got {num_workers}. Compare "
            "the codes of each number of workers in a study of its own"
        )
    named_delays = _named("delays", delays, lambda models: [*map(repr, models)])
    for name, delay in named_delays.items():
        _validation.check_instance(f"delays[{name!r}]", delay, DelayModel)
    [any_code, *_] = named_codes.values()
    named_rules = _named(
        "waiting",
        waiting,
        lambda rules: [_rule_label(rule, any_code.num_workers) for rule in rules],
    )
    rules = {
        name: tuple(
            _rule_of_code(name, rule, code_name, code, late)
            for code_name, code in named_codes.items()
        )
        for name, rule in named_rules.items()
    }
    return Inputs(_with_decoders(named_codes, decoder), named_delays, rules, late)


def _named(
    argument: str, values: Any, labels_of: Callable[[Sequence[Any]], list[str]]
) -> dict[str, Any]:
    """Returns the objects of a dict or list by name."""
    if isinstance(values, Mapping):
        names = [str(name) for name in values]
        values = list(values.values())
    elif isinstance(values, list | tuple):
        names = labels_of(values)
    else:
        raise TypeError(
            f"{argument} must be a dict with names, or a list; got "
            f"{_validation.in_short(values)}. Put a single one into a list"
        )
    if not names:
        raise ValueError(f"{argument} must not be empty; got {values}")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{argument} must have different names; got {name!r} "
                f"{names.count(name)} times. Pass a dict with names"
            )
    return dict(zip(names, values, strict=True))


def _code_labels(codes: Sequence[Any]) -> list[str]:
    """Returns short labels of codes, e.g. "Lagrange, 4 copies", numbered if equal."""
    labels = []
    for code in codes:
        GradientCode.check(code)
        copies = float(np.asarray(code.assignment).sum(axis=0).mean())
        noun = "copy" if copies == 1 else "copies"
        decoder = str(code.decoders[0]) if code.decoders else "no decoder"
        labels.append(f"{decoder}, {copies:.3g} {noun}")
    numbered = []
    for place, label in enumerate(labels):
        if labels.count(label) > 1:
            label = f"{label} ({labels[: place + 1].count(label)})"
        numbered.append(label)
    return numbered


def _rule_label(rule: Any, num_workers: int) -> str:
    """Returns a label of a waiting rule, or the name of a function of a code."""
    if isinstance(rule, WaitingRule):
        return rule.describe(num_workers)[0]
    return getattr(rule, "__name__", repr(rule))


def _rule_of_code(
    name: str, rule: Any, code_name: str, code: GradientCode, late: str
) -> WaitingRule:
    """Returns the waiting rule of a code, and checks that it fits."""
    cell = f"waiting[{name!r}] for codes[{code_name!r}]"
    if not isinstance(rule, WaitingRule) and callable(rule):
        try:
            rule = rule(code)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{cell} must be a waiting rule or a function of a code that returns "
                f"one; the function raised: {error}"
            ) from error
    if not isinstance(rule, WaitingRule):
        raise TypeError(
            f"{cell} must be a waiting rule or a function of a code that returns one, "
            "e.g. stragglers.fastest(6) or stragglers.until_decodable; got "
            f"{_validation.in_short(rule)}"
        )
    if rule.code is not None and not np.array_equal(
        np.asarray(rule.code.assignment), np.asarray(code.assignment)
    ):
        raise ValueError(
            f"{cell} must wait for the messages of this code; its rule is for another "
            f"code, {rule.code}. Pass a function of a code, e.g. "
            "stragglers.until_decodable"
        )
    try:
        # A rule of a code is known to have the right number of workers.
        if rule.code is None:
            times = jax.ShapeDtypeStruct((code.num_workers,), jnp.result_type(float))
            jax.eval_shape(rule.arrivals, jax.random.key(0), times)
        delayed(_AnyDelay(), rule, late)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{cell} does not fit the code: {error}") from error
    return rule


class _AnyDelay(DelayModel):
    """Delay model with which combinations of `late` and a rule are checked."""

    def sample(self, key, state, loads):
        return loads, state


def _with_decoders(
    codes: dict[str, GradientCode], decoder: Any
) -> dict[str, GradientCode]:
    """Replaces the decoders of each code by the decoder of the study."""
    if not isinstance(decoder, Mapping):
        decoder = dict.fromkeys(codes, decoder)
    for name in decoder:
        if name not in codes:
            raise ValueError(
                f"decoder must be a dict with names of codes {list(codes)}; got "
                f"{name!r}"
            )
    return {
        name: with_one_decoder(code, decoder.get(name)) for name, code in codes.items()
    }
