"""Checks the arguments of `compare`, and names codes, delay models and rules."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.simulation._program_arguments import with_one_decoder
from jaxwgc.simulation._rules import rule_of_code
from jaxwgc.stragglers import DelayModel, WaitingRule

T = TypeVar("T")


class Inputs(NamedTuple):
    """Checked arguments of `compare`.

    Attributes:
      codes: Codes by name, each with the decoder of the study as its only decoder.
      delays: Delay models by name.
      rules: For the name of each waiting rule, the rule of each code, in their order.
      late: What late workers do: `"cancelled"` or `"busy"`.
      has_dependent_rounds: Whether a round depends on the rounds before it, for each
        delay model in their order.
    """

    codes: dict[str, GradientCode]
    delays: dict[str, DelayModel]
    rules: dict[str, tuple[WaitingRule, ...]]
    late: str
    has_dependent_rounds: tuple[bool, ...]


def checked_inputs(
    codes: Mapping[Any, GradientCode] | Iterable[GradientCode],
    delays: Mapping[Any, DelayModel] | Iterable[DelayModel],
    waiting: Mapping[Any, Any] | Iterable[Any],
    late: str,
    decoder: DecoderLike | Mapping[Any, DecoderLike],
) -> Inputs:
    """Checks the arguments of `compare`, and names codes, delay models and rules."""
    validation.check_choice("late", late, ("cancelled", "busy"))
    named_codes = _named(
        "codes", codes, _check_code, lambda listed: _code_labels(listed, decoder)
    )
    all_num_workers = {name: code.num_workers for name, code in named_codes.items()}
    if len(set(all_num_workers.values())) > 1:
        raise ValueError(
            f"codes must have the same number of workers; got {all_num_workers}. "
            "Call compare once for each number of workers"
        )
    num_workers = next(iter(all_num_workers.values()))
    named_delays = _named(
        "delays", delays, _check_delay, lambda listed: [repr(delay) for delay in listed]
    )
    named_rules = _named(
        "waiting",
        waiting,
        _check_rule,
        lambda listed: [_rule_label(rule, num_workers) for rule in listed],
    )
    # Waiting rules may be functions of a code. They get the code with the decoder that
    # the study uses.
    named_codes = _with_default_decoders(named_codes, decoder)
    rules = {
        name: _rules_of_codes(name, rule, named_codes)
        for name, rule in named_rules.items()
    }
    if late == "busy":
        _check_one_message_per_worker(named_codes, next(iter(named_rules)))
    return Inputs(
        codes={name: with_one_decoder(code) for name, code in named_codes.items()},
        delays=named_delays,
        rules=rules,
        late=late,
        has_dependent_rounds=tuple(
            late == "busy" or _has_state(name, delay, num_workers)
            for name, delay in named_delays.items()
        ),
    )


def _rules_of_codes(
    name: str, rule: Any, codes: dict[str, GradientCode]
) -> tuple[WaitingRule, ...]:
    """Returns the waiting rule for each code; raises if it does not fit the code."""
    rules = []
    for code_name, code in codes.items():
        rule_name = f"waiting[{name!r}] for codes[{code_name!r}]"
        rules.append(rule_of_code(rule_name, rule, code))
    return tuple(rules)


def _named(
    argument: str,
    values: Mapping[Any, T] | Iterable[T],
    check: Callable[[str, T], None],
    labels_of: Callable[[Sequence[T]], list[str]],
) -> dict[str, T]:
    """Converts a dict or list to a dict with names, and checks its values."""
    names = None
    if isinstance(values, Mapping):
        names = [str(name) for name in values]
        objects = list(values.values())
    elif isinstance(values, Iterable) and not isinstance(values, str):
        objects = list(values)
    else:
        raise TypeError(
            f"{argument} must be a dict with names as keys, or a list; got "
            f"{validation.in_short(values)}. Put a single object into a list"
        )
    if not objects:
        raise ValueError(f"{argument} must not be empty; got {values}")
    keys = range(len(objects)) if names is None else names
    for key, value in zip(keys, objects, strict=True):
        check(f"{argument}[{key!r}]", value)
    if names is None:
        names = labels_of(objects)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{argument} must have different names; got {name!r} "
                f"{names.count(name)} times. Pass a dict with different names"
            )
    return dict(zip(names, objects, strict=True))


def _check_code(name: str, code: Any) -> None:
    validation.check_instance(name, code, GradientCode)
    array_validation.check_concrete(name, code, "a study runs on the host")
    GradientCode.check(code)


def _check_delay(name: str, delay: Any) -> None:
    validation.check_instance(name, delay, DelayModel)


def _check_rule(name: str, rule: Any) -> None:
    if not isinstance(rule, WaitingRule) and not callable(rule):
        raise TypeError(
            f"{name} must be a waiting rule, e.g. stragglers.fastest(6), or a function "
            "that takes a code and returns a rule, e.g. stragglers.until_decodable; "
            f"got {validation.in_short(rule)}"
        )


def _code_labels(
    codes: Sequence[GradientCode], decoder: DecoderLike | Mapping[Any, DecoderLike]
) -> list[str]:
    """Returns distinct short names of codes, e.g. "Lagrange, 4 copies"."""
    # These names are the keys of a dict of decoders. So they must not depend on its
    # values.
    decoder_of_study = None if isinstance(decoder, Mapping) else decoder
    labels = []
    for code in codes:
        copies = float(np.asarray(code.assignment).sum(axis=0).mean())
        noun = "copy" if copies == 1 else "copies"
        labels.append(f"{code.choose_decoder(decoder_of_study)}, {copies:.3g} {noun}")
    numbered = []
    for place, label in enumerate(labels):
        if labels.count(label) > 1:
            num_before = labels[:place].count(label)
            label = f"{label} ({num_before + 1})"
        numbered.append(label)
    return numbered


def _rule_label(rule: Any, num_workers: int) -> str:
    """Returns a short name of a waiting rule, or of a function that returns a rule."""
    if isinstance(rule, WaitingRule):
        return rule.describe(num_workers)[0]
    if isinstance(rule, functools.partial):
        arguments = [repr(argument) for argument in rule.args]
        arguments += [f"{name}={value!r}" for name, value in rule.keywords.items()]
        return f"{_rule_label(rule.func, num_workers)}({', '.join(arguments)})"
    return getattr(rule, "__name__", repr(rule))


def _with_default_decoders(
    codes: dict[str, GradientCode], decoder: DecoderLike | Mapping[Any, DecoderLike]
) -> dict[str, GradientCode]:
    """Returns the codes with the decoders of the study as default decoders."""
    if isinstance(decoder, Mapping):
        decoders = decoder
    else:
        decoders = dict.fromkeys(codes, decoder)
    for name in decoders:
        if name not in codes:
            raise ValueError(
                f"keys of decoder must be names of codes {list(codes)}; got {name!r}"
            )
    with_defaults = {}
    for name, code in codes.items():
        default = code.choose_decoder(decoders.get(name))
        others = [other for other in code.decoders if other is not default]
        with_defaults[name] = dataclasses.replace(code, decoders=(default, *others))
    return with_defaults


def _check_one_message_per_worker(codes: dict[str, GradientCode], rule: str) -> None:
    for name, code in codes.items():
        if code.messages_per_worker > 1:
            raise ValueError(
                f"late must be 'cancelled' with waiting[{rule!r}] for codes[{name!r}], "
                f"since the code has {code.messages_per_worker} messages per worker; "
                "got 'busy'"
            )


def _has_state(name: str, delay: DelayModel, num_workers: int) -> bool:
    """Returns whether a delay model has a state, so that its rounds are dependent."""
    try:
        state = delay.init(num_workers)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"delays[{name!r}] does not fit {num_workers} workers: {error}"
        ) from error
    return bool(jax.tree.leaves(state))
