"""Hiring: what workers are given, and the actors that are made of it."""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _dtypes, coding
from jaxwgc.codes import GradientCode
from jaxwgc.distributed._ray_rounds import Layout
from jaxwgc.distributed._ray_runtime import find_ray
from jaxwgc.distributed._ray_worker import Task, Worker, environment, pack, sent
from jaxwgc.gradients import partial_value_and_grad, scalar_loss

# What the workers' JAX must have in common with that of the coordinator.
_SHARED_SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_compilation_cache_dir",
)


class Hiring(NamedTuple):
    """What all workers are given: arguments of `RayCluster`, checked.

    Attributes:
      code, loss, has_aux, load, batch, delay: as they are.
      parts: leaves in NumPy, typed keys alone in JAX.
      message_dtype: the name of it, or None.
      options: for Ray, of an actor.
    """

    code: GradientCode
    loss: Callable
    has_aux: bool
    parts: Any
    load: Callable | None
    batch: Callable | None
    delay: Callable | None
    message_dtype: str | None
    options: Mapping[str, Any]

    def check_resources(self) -> None:
        """Ray would let workers wait for ever for what no machine has."""
        claims = {
            "CPU": self.options["num_cpus"],
            "GPU": self.options.get("num_gpus"),
            "memory": self.options.get("memory"),
            **(self.options.get("resources") or {}),
        }
        claims = {name: amount for name, amount in claims.items() if amount}
        if not claims:
            return
        nodes = [node["Resources"] for node in find_ray().nodes() if node["Alive"]]
        room = sum(
            # Up to rounding, of three times a third.
            int(min(node.get(name, 0) / own for name, own in claims.items()) + 1e-6)
            for node in nodes
        )
        if room < self.code.num_workers:
            has = [{name: node.get(name, 0) for name in claims} for node in nodes]
            raise ValueError(
                f"the cluster must have room for num_workers = {self.code.num_workers} "
                f"actors that claim {claims} each; got room for {room}, on nodes that "
                f"have {has} (actor_options={{'num_cpus': 0.5}} would claim half a CPU)"
            )

    def layout(self, like: Any, key: jax.Array) -> Layout:
        """What answers look like; tries the loss on shapes where a part is known."""
        code = self.code
        if self.parts is not None:
            parts = jax.tree.map(_one_of, self.parts)
            if self.batch is not None:
                keys = jax.random.split(key, 1)
                parts = jax.eval_shape(jax.vmap(self.batch), keys, parts)
            loss = self.loss if self.has_aux else scalar_loss(self.loss)
            jax.eval_shape(partial_value_and_grad(loss, self.has_aux), like, parts)
        gradients = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (code.num_parts, *leaf.shape), leaf.dtype
            ),
            like,
        )
        messages = jax.eval_shape(lambda own: coding.encode(code, own), gradients)
        wire = jax.eval_shape(
            lambda own: pack(own[: code.messages_per_worker], self.message_dtype),
            messages,
        )
        dtype = messages.dtype
        if self.message_dtype is not None:
            dtype = np.dtype(np.complex64 if code.is_complex else np.float32)
        held = [np.flatnonzero(own) for own in np.asarray(code.assignment)]
        return Layout(
            # One who holds nothing sends zero times the first.
            [own if len(own) else np.zeros(1, int) for own in held],
            code.num_parts,
            code.messages_per_worker,
            messages.shape[1],
            dtype,
            wire,
        )

    def hirer(
        self, like: Any, layout: Layout, key: jax.Array
    ) -> Callable[[int, int], Any]:
        """A function that makes the actor of a worker, for the nth time."""
        ray, code = find_ray(), self.code
        is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        task = Task(
            loss=self.loss,
            has_aux=self.has_aux,
            load=self.load,
            batch=self.batch,
            delay=self.delay,
            params=like,
            message_dtype=self.message_dtype,
            key_kind=str(jax.random.key_impl(key)) if is_typed else None,
            settings={name: getattr(jax.config, name) for name in _SHARED_SETTINGS},
        )
        shared = ray.put(task)
        parts = None
        if self.parts is not None:
            leaves, structure = jax.tree.flatten(self.parts)
            parts = [
                ray.put(structure.unflatten([sent(leaf[part]) for leaf in leaves]))
                for part in range(code.num_parts)
            ]
        matrix = np.asarray(code.encoding_matrix).reshape(
            code.num_workers, code.messages_per_worker, code.num_parts, -1
        )
        actor = ray.remote(max_restarts=0, max_task_retries=0)(Worker)
        options = dict(self.options)
        runtime = dict(options.pop("runtime_env", {}))
        runtime["env_vars"] = environment(options) | runtime.get("env_vars", {})
        # Names must be unique within it.
        namespace = f"jaxwgc-{uuid.uuid4()}"

        def hire(worker: int, number: int) -> Any:
            held = layout.held[worker]
            rows = matrix[worker][:, held].reshape(code.messages_per_worker, -1)
            own = None if parts is None else [parts[part] for part in held]
            return actor.options(
                **options,
                runtime_env=runtime,
                name=f"worker-{worker}.{number}",
                namespace=namespace,
            ).remote(worker, held, rows, own, shared)

        return hire


def in_numpy(leaf: Any) -> Any:
    """A leaf of parts on the host, but for typed keys, which NumPy does not know."""
    is_key = jnp.issubdtype(_dtypes.dtype_of(leaf), jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)


def _one_of(leaf):
    """The shape of a leaf of parts of which there is one."""
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), dtype)
