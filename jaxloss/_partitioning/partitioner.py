"""What XLA's partitioner calls back, by a name that is the same in every process.

`jax.experimental.custom_partitioning` names its callbacks by an address, and keeps them alive with the program. So a
compiled program is never found again in the persistent compilation cache, and can be neither exported nor serialized.
Here a callback is named by a description of its call: whoever compiles a program makes the callback from that. A
platform without kernels has nothing to partition: it gets the formula alone.

There is no public way to name a callback, so internals of JAX are used here, and nowhere else but in `partitioned`.
"""

import contextlib
import functools
import hashlib
import json
import math
import pathlib
import threading
import types
import uuid
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import custom_partitioning as jax_partitioning
from jax._src import dispatch, xla_bridge
from jax._src.custom_partitioning_sharding_rule import sdy_sharding_rule_to_mlir, str_to_sdy_sharding_rule
from jax._src.interpreters import mlir, partial_eval
from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxloss._ffi import library
from jaxloss._partitioning.descriptions import made_of, own_module, text_of
from jaxloss._partitioning.meshes import as_spec
from jaxloss._partitioning.partitioned import Call, primitive

# Those that are looked up later, looked up now: a version of JAX that lacks one is known at once.
_callback_info = jax_partitioning._ShardingCallbackInfo
_callbacks_of_jax = jax_partitioning._sharding_callbacks
_module_of_one_device = jax_partitioning._custom_partitioning_partition
_inferred_by_jax = jax_partitioning._custom_partitioning_infer_sharding_from_operands


# ---- names -----------------------------------------------------------------------------------------------------------

_calls: dict[str, Call] = {}


class _OfThisProcess:
    """A call that has no description, and the callbacks that split it; the program that it is part of keeps it."""

    def __init__(self, call: Call):
        self.call, self.name, self.known = call, f"{_LOCAL}{uuid.uuid4().hex}", {}


_LOCAL = "of this process: "
_of_this_process: weakref.WeakValueDictionary[str, _OfThisProcess] = weakref.WeakValueDictionary()


def _name(call: Call, module) -> str:
    """The call's name, the same in every process if it has a description."""
    if call.description is None:
        local = _OfThisProcess(call)
        _of_this_process[local.name] = local
        module.add_keepalive(local)
        return local.name
    name = text_of(call.description)
    _calls.setdefault(name, call)
    return name


def _call_named(name: str) -> Call:
    if name.startswith(_LOCAL):
        if name not in _of_this_process:
            raise ValueError("the program holds a function of the process that made it: expected one of this process")
        return _of_this_process[name].call
    if name not in _calls:
        module, arguments = made_of(name)
        _calls[name] = own_module(module).partitioned(*arguments)
    return _calls[name]


@functools.cache
def _release() -> str:
    """What tells this code from any other: a program holds the name of a call, but not the code that splits it."""
    files = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


# ---- shardings of devices as shardings of axes -----------------------------------------------------------------------


def _spec_of(sharding, mesh: AbstractMesh, rank: int) -> PartitionSpec:
    """The axes of the mesh that split each axis of an array; none where its tiles are not those of whole axes."""
    whole = as_spec([()] * rank)
    if sharding is None:  # GSPMD does not know it yet
        return whole
    dimensions = sharding.tile_assignment_dimensions()
    if math.prod(dimensions) != math.prod(mesh.axis_sizes):  # replicated, too
        return whole
    # Where in the grid of tiles each device is, by the device's place in the mesh.
    tiles = np.empty((math.prod(dimensions), len(dimensions)), int)
    tiles[sharding.tile_assignment_devices()] = np.indices(dimensions).reshape(len(dimensions), -1).T
    tiles = tiles[:, :rank].reshape(*mesh.axis_sizes, rank)
    origin = tiles[(0,) * len(mesh.axis_sizes)]
    strides = {
        axis: tiles[tuple(int(place == other) for other in range(len(mesh.axis_sizes)))] - origin
        for place, (axis, size) in enumerate(mesh.shape.items())
        if size > 1
    }
    spec = []
    for dimension in range(rank):
        axes = [axis for axis, stride in strides.items() if stride[dimension] > 0]
        spec.append(tuple(sorted(axes, key=lambda axis: -strides[axis][dimension])))
    return as_spec(spec) if np.array_equal(tiles, _tiles(mesh, spec)) else whole


def _tiles(mesh: AbstractMesh, spec: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The tile that each device of the mesh has of an array whose axes are split so."""
    index = dict(zip(mesh.axis_names, np.indices(mesh.axis_sizes), strict=True))

    def along(axes):
        return functools.reduce(lambda tile, axis: tile * mesh.shape[axis] + index[axis], axes, 0 * index[axes[0]])

    none = np.zeros(mesh.axis_sizes, int)
    return np.stack([along(axes) if axes else none for axes in spec], -1) if spec else none[..., None][..., :0]


# ---- lowering --------------------------------------------------------------------------------------------------------


def _meshes(context) -> tuple[AbstractMesh, AbstractMesh]:
    """The mesh that a module is for, and that of those of its axes that are automatic."""
    mesh = getattr(context, "abstract_mesh", None) or getattr(context, "mesh", None)
    if mesh is None or mesh.empty:  # shardings that are not of a mesh
        mesh = AbstractMesh((getattr(context, "num_devices", 1),), ("devices",))
    return AbstractMesh(mesh.axis_sizes, mesh.axis_names), _without(mesh, getattr(context, "manual_axes", ()))


def _without(mesh, manual: Collection[str]) -> AbstractMesh:
    remaining = {axis: size for axis, size in mesh.shape.items() if axis not in manual}
    return AbstractMesh(tuple(remaining.values()), tuple(remaining))


def _lowered(ctx, *values, call: Call, jaxpr, platform: str | None):
    context, whole = ctx.module_context, jaxpr_as_fun(jaxpr)
    mesh, automatic = _meshes(context.axis_context)
    asked = context.platforms if platform is None else (platform,)
    platforms = [name for name in asked if name in library.PLATFORMS]
    if math.prod(automatic.axis_sizes) == 1 or not platforms:
        return mlir.lower_fun(whole, multiple_results=True)(ctx, *values)
    if len(asked) > 1:

        def of_platforms(*operands):
            branches = {
                name: functools.partial(primitive.bind, call=call, jaxpr=jaxpr, platform=name) for name in platforms
            }
            return jax.lax.platform_dependent(*operands, default=whole, **branches)

        return mlir.lower_fun(of_platforms, multiple_results=True)(ctx, *values)

    result_types = [mlir.aval_to_ir_type(context, aval) for aval in ctx.avals_out]
    manual = sorted(set(mesh.axis_names) - set(automatic.axis_names))
    op = mlir.custom_call(
        library.PARTITIONED_TARGET,
        result_types=result_types,
        operands=values,
        backend_config=json.dumps(
            [_name(call, context), platforms[0], mesh.axis_sizes, mesh.axis_names, manual, _release()]
        ),
        api_version=2,
        result_shapes=_result_shapes(ctx),
    )
    rule = call.rule([aval.ndim for aval in ctx.avals_in], [aval.ndim for aval in ctx.avals_out])
    op.attributes["sdy.sharding_rule"] = sdy_sharding_rule_to_mlir(
        str_to_sdy_sharding_rule(rule), [value.type for value in values], result_types
    )
    return op.results


def _result_shapes(ctx):
    """The shapes of the results as values, where they are known to the call of an exported program alone."""
    if all(isinstance(size, int) for aval in ctx.avals_out for size in aval.shape):
        return None
    return [
        mlir.shape_tensor(ctx.module_context, mlir.eval_dynamic_shape_as_ivals(ctx, aval.shape))
        for aval in ctx.avals_out
    ]


def _of_plain_arrays(*operands, jaxpr, **params):
    """The same call where a caller's function has primitives that JAX first makes of simpler ones."""
    return primitive.bind(*operands, jaxpr=partial_eval.lower_jaxpr2(jaxpr), **params)


_lock = threading.Lock()
_known: dict[bytes, Any] = {}
"""What JAX, which holds it weakly, finds by a name."""


def _make_known(backend_config: bytes, operands: int, result_shape) -> None:
    """Lets JAX's own callbacks find how a call of so many operands is split; programs are compiled in many threads."""
    results = len(result_shape.tuple_shapes()) if result_shape.is_tuple() else 1
    name = json.loads(backend_config)[0]
    with _lock:
        known = _of_this_process[name].known if name in _of_this_process else _known
        if backend_config not in known:
            known[backend_config] = _callback(backend_config, operands, results)
        _callbacks_of_jax[backend_config] = known[backend_config]


def _callback(backend_config: bytes, operands: int, results: int):
    name, platform, sizes, names, manual, _ = json.loads(backend_config)
    mesh = AbstractMesh(tuple(sizes), tuple(names))
    automatic = _without(mesh, manual)
    call = _call_named(name)

    def partition(_, operands, results):
        op, of_operands, of_results = call.placed(automatic, operands, results)
        return mesh, op, of_results, of_operands

    return _callback_info(
        propagate_user_sharding=None,
        partition=partition,
        to_mesh_pspec_sharding=lambda sharding, rank: NamedSharding(automatic, _spec_of(sharding, automatic, rank)),
        in_tree=jax.tree.structure((0,) * operands),
        out_tree=jax.tree.structure((0,) * results),
        infer_sharding_from_operands=lambda _, operands, results: call.placed(automatic, operands, results)[2],
        module_context=types.SimpleNamespace(platforms=(platform,), backend=None),
        mesh=mesh,
        static_args=(),
    )


def _partition(arg_shapes, arg_shardings, result_shape, result_sharding, backend_config: bytes):
    """What the partitioner asks for: the module of one device, and how operands and results are split."""
    _make_known(backend_config, len(arg_shapes), result_shape)
    # One device's program knows nothing of explicit axes.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())), _types_of(arg_shapes):
        return _module_of_one_device(arg_shapes, arg_shardings, result_shape, result_sharding, backend_config)


def _types_of(shapes):
    """64-bit types where operands have them: the partitioner calls back in threads of its own, which do not know of it.

    Where `jax.enable_x64` is for a block of a program, it is for the thread that runs this.
    """
    wide = any(np.dtype(shape.numpy_dtype()).itemsize == 8 for shape in shapes)
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def _inferred(arg_shapes, arg_shardings, result_shape, backend_config: bytes):
    """How results are split, which GSPMD asks for in place of a rule."""
    _make_known(backend_config, len(arg_shapes), result_shape)
    return _inferred_by_jax(arg_shapes, arg_shardings, result_shape, backend_config)


def _unchanged(sharding, shape, backend_config):
    del shape, backend_config
    return sharding


def registered() -> bool:
    """Makes JAX lower the primitive so, and XLA call back."""
    callbacks: dict[str, Any] = {
        "name": library.PARTITIONED_TARGET,
        "prop_user_sharding": _unchanged,
        "partition": _partition,
        "infer_sharding_from_operands": _inferred,
        "can_side_effecting_have_replicated_sharding": True,
    }
    xla_client.register_custom_call_partitioner(**callbacks)
    xla_bridge.register_plugin_callbacks(functools.partial(xla_client.register_custom_call_partitioner, **callbacks))
    dispatch.prim_requires_devices_during_lowering.add(primitive)
    mlir.register_lowering(primitive, _lowered)
    if hasattr(partial_eval, "lower_jaxpr2"):  # of newer versions
        primitive.to_lojax = _of_plain_arrays
    return True
