"""A call that XLA's partitioner splits over the automatic axes of a mesh, in the way that the call itself says.

`jax.experimental.custom_partitioning` names its callbacks by an address, and keeps them alive with the program. So a
compiled program is never found again in the persistent compilation cache, and can be neither exported nor serialized.
Here a callback is named by a description of the call that is the same in every process: whoever compiles a program
makes the callback from that. A platform without kernels has nothing to partition: it gets the formula alone.

The partitioner is reached by internals of JAX, as there is no public way to name a callback. Where a version of JAX
does not have them, `custom_partitioning` does the work, without cache, export and serialization.
"""

import base64
import dataclasses
import functools
import importlib
import json
import math
import types
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxloss import _library, formulas
from jaxloss._calls import Array

try:
    from jax._src import custom_partitioning as _jax_partitioning
    from jax._src import dispatch, xla_bridge
    from jax._src.custom_partitioning_sharding_rule import sdy_sharding_rule_to_mlir, str_to_sdy_sharding_rule
    from jax._src.interpreters.mlir import custom_call, eval_dynamic_shape_as_ivals, shape_tensor
    from jax._src.lib import xla_client

    _ShardingCallbackInfo = _jax_partitioning._ShardingCallbackInfo
    _sharding_callbacks = _jax_partitioning._sharding_callbacks
    _partitioned_module = _jax_partitioning._custom_partitioning_partition
    _register = xla_client.register_custom_call_partitioner
    NAMED = True
    """Whether this version of JAX has what naming a callback takes."""
except (ImportError, AttributeError):  # pragma: no cover
    NAMED = False

Op = Callable[..., tuple[Array, ...]]
Description = tuple[str, tuple]
"""A module, and the arguments of a function there, `partitioned`: numbers, strings, functions of `jaxloss.formulas`,
dataclasses of the library's modules, and tuples of such."""

TARGET = _library.PARTITIONED_TARGET


@dataclasses.dataclass(frozen=True)
class Partition:
    """How a call is split over devices.

    Attributes:
        op: what each device does with its shards of the operands.
        operands: how the operands are to be split.
        results: how the results then are.
    """

    op: Op
    operands: Sequence[PartitionSpec]
    results: Sequence[PartitionSpec]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What is to be partitioned.

    Attributes:
        description: what makes the same call in another process.
        whole: the op where nothing is split.
        partition: from a mesh of the automatic axes, the operands' shapes and specs, and the results' ranks.
        rule: from the ranks of operands and results, which axes of them are split alike, as
            `jax.experimental.custom_partitioning` has it.
    """

    description: Description
    whole: Op
    partition: Callable[[Any, Sequence[jax.ShapeDtypeStruct], Sequence[PartitionSpec], Sequence[int]], Partition]
    rule: Callable[[Sequence[int], Sequence[int]], str]

    def __call__(self, *operands: Array) -> tuple[Array, ...]:
        """The call on operands that the partitioner may have split."""
        if not NAMED:  # pragma: no cover
            return _with_custom_partitioning(self)(*operands)
        jaxpr = jax.make_jaxpr(self.whole)(*operands)
        return tuple(_primitive.bind(*operands, call=self, jaxpr=jaxpr, platform=None))


# ---- descriptions ----------------------------------------------------------------------------------------------------


def _encoded(x) -> Any:
    """A part of a description as JSON has it."""
    match x:
        case None | bool() | int() | float() | str():
            return x
        case tuple():
            return [_encoded(part) for part in x]
        case jax.lax.Precision():
            return {"precision": x.name}
        case jax.lax.DotAlgorithmPreset():
            return {"algorithm": x.name}
        case jax.lax.DotAlgorithm():
            return {"operation": [_encoded(part) for part in x]}
        case np.dtype():
            return {"dtype": x.name}
        case dict():
            return {"items": [[_encoded(key), _encoded(value)] for key, value in x.items()]}
        case functools.partial() if not x.args:
            return {**_encoded(x.func), "with": {key: _encoded(value) for key, value in x.keywords.items()}}
        case types.FunctionType() if getattr(formulas, x.__name__, None) is x:
            return {"formula": x.__name__, "with": {}}
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = {field.name: _encoded(getattr(x, field.name)) for field in dataclasses.fields(x)}
        return {"class": [type(x).__module__, type(x).__name__], "fields": fields}
    raise TypeError(f"{x!r} can not be part of a description")


def _decoded(x) -> Any:
    match x:
        case list():
            return tuple(map(_decoded, x))
        case {"precision": name}:
            return jax.lax.Precision[name]
        case {"algorithm": name}:
            return jax.lax.DotAlgorithmPreset[name]
        case {"operation": parts}:
            return jax.lax.DotAlgorithm(*map(_decoded, parts))
        case {"dtype": name}:
            return jnp.dtype(name)
        case {"items": items}:
            return dict(map(_decoded, items))
        case {"formula": name, "with": given}:
            formula = getattr(formulas, name)
            if not isinstance(formula, types.FunctionType):
                raise ValueError(f"{name} is not a formula")
            return functools.partial(formula, **{k: _decoded(v) for k, v in given.items()}) if given else formula
        case {"class": [module, name], "fields": fields}:
            found = getattr(_own_module(module), name)
            if not (dataclasses.is_dataclass(found) and isinstance(found, type)):
                raise ValueError(f"{module}.{name} is not a dataclass")
            return found(**{key: _decoded(value) for key, value in fields.items()})
    return x


def _own_module(name: str) -> types.ModuleType:
    """A module of this library: a description, which may come from a file, names no other."""
    if name.partition(".")[0] != __name__.partition(".")[0]:
        raise ValueError(f"{name} is not a module of this library")
    return importlib.import_module(name)


_calls: dict[str, Call] = {}


def _name(call: Call) -> str:
    """The call's name, the same in every process."""
    module, arguments = call.description
    text = json.dumps([_library.CONVENTION, module, _encoded(arguments)], sort_keys=True, separators=(",", ":"))
    name = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    _calls.setdefault(name, call)
    return name


def _call_named(name: str) -> Call:
    if name not in _calls:
        convention, module, arguments = json.loads(zlib.decompress(base64.b64decode(name)))
        if convention != _library.CONVENTION:
            raise ValueError(
                f"the program is of calling convention {convention} of jaxloss, this release has {_library.CONVENTION}: "
                "compile or export it again"
            )
        _calls[name] = _own_module(module).partitioned(*_decoded(arguments))
    return _calls[name]


# ---- the partitioner -------------------------------------------------------------------------------------------------


def _spec_of(sharding, mesh: AbstractMesh, rank: int) -> PartitionSpec:
    """The axes of the mesh that split each axis of an array; none where its tiles are not those of whole axes."""
    dimensions = sharding.tile_assignment_dimensions()
    if math.prod(dimensions) != mesh.size:  # replicated, too
        return _as_spec([()] * rank)
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
    return _as_spec(spec if np.array_equal(tiles, _tiles(mesh, spec)) else [()] * rank)


def _tiles(mesh: AbstractMesh, spec: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The tile that each device of the mesh has of an array whose axes are split so."""
    index = dict(zip(mesh.axis_names, np.indices(mesh.axis_sizes), strict=True))

    def along(axes):
        return functools.reduce(lambda tile, axis: tile * mesh.shape[axis] + index[axis], axes, 0 * index[axes[0]])

    none = np.zeros(mesh.axis_sizes, int)
    return np.stack([along(axes) if axes else none for axes in spec], -1) if spec else none[..., None][..., :0]


def _as_spec(spec: Sequence[tuple[str, ...]]) -> PartitionSpec:
    return PartitionSpec(*(None if not axes else axes[0] if len(axes) == 1 else axes for axes in spec))


def _with_custom_partitioning(call: Call) -> Op:  # pragma: no cover
    """The call by what is public of JAX."""

    @custom_partitioning
    def automatic(*operands):
        return call.whole(*operands)

    def partition(mesh, operands, results):
        specs, ranks = [operand.sharding.spec for operand in operands], [len(result.shape) for result in results]
        split = call.partition(mesh, operands, specs, ranks)
        operands, results = (
            tuple(NamedSharding(mesh, spec) for spec in specs) for specs in (split.operands, split.results)
        )
        return mesh, split.op, results, operands

    def rule(mesh, operands, results):
        del mesh
        return call.rule(*([len(array.shape) for array in arrays] for arrays in (operands, results)))

    automatic.def_partition(partition=partition, sharding_rule=rule)
    return automatic


_primitive = Primitive("jaxloss_partitioned")
_primitive.multiple_results = True
_primitive.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
_primitive.def_impl(lambda *operands, call, **_: _compiled(call)(*operands))


@functools.cache
def _compiled(call: Call) -> Op:
    """For eager calls: what is not compiled nobody partitions."""
    return jax.jit(call)


def _meshes(context) -> tuple[AbstractMesh, AbstractMesh] | None:
    """The mesh that a module is for, and the mesh of those axes that are automatic; None where nothing is to split."""
    mesh = getattr(context, "abstract_mesh", None) or getattr(context, "mesh", None)
    if mesh is None or mesh.empty:  # shardings that are not of a mesh
        mesh = AbstractMesh((getattr(context, "num_devices", 1),), ("devices",))
    manual = set(getattr(context, "manual_axes", ()))
    automatic = {name: size for name, size in mesh.shape.items() if name not in manual}
    if math.prod(automatic.values()) == 1:
        return None
    return AbstractMesh(mesh.axis_sizes, mesh.axis_names), AbstractMesh((*automatic.values(),), (*automatic,))


def _lowered(ctx, *values, call: Call, jaxpr, platform):
    context = ctx.module_context
    meshes = _meshes(context.axis_context)
    whole = jaxpr_as_fun(jaxpr)
    platforms = [name for name in (platform and [platform] or context.platforms) if name in _library.PLATFORMS]
    if meshes is None or not platforms:
        return mlir.lower_fun(whole, multiple_results=True)(ctx, *values)
    if platform is None and len(context.platforms) > 1:  # of a module for several

        def of_platforms(*operands):
            branches = {
                name: functools.partial(_primitive.bind, call=call, jaxpr=jaxpr, platform=name) for name in platforms
            }
            return jax.lax.platform_dependent(*operands, default=whole, **branches)

        return mlir.lower_fun(of_platforms, multiple_results=True)(ctx, *values)

    types_of = [mlir.aval_to_ir_type(context, aval) for aval in ctx.avals_out]
    mesh = meshes[0]
    manual = sorted(set(mesh.axis_names) - set(meshes[1].axis_names))
    backend_config = json.dumps([_name(call), platforms[0], list(mesh.shape.items()), manual], separators=(",", ":"))
    op = custom_call(
        TARGET,
        result_types=types_of,
        operands=values,
        backend_config=backend_config,
        api_version=2,
        result_shapes=_result_shapes(ctx),
    )
    rule = call.rule([aval.ndim for aval in ctx.avals_in], [aval.ndim for aval in ctx.avals_out])
    op.attributes["sdy.sharding_rule"] = sdy_sharding_rule_to_mlir(
        str_to_sdy_sharding_rule(rule), [value.type for value in values], types_of
    )
    return op.results


def _result_shapes(ctx):
    """The shapes of the results as values, where they are known to the call of an exported program alone."""
    if all(isinstance(size, int) for aval in ctx.avals_out for size in aval.shape):
        return None
    return [shape_tensor(ctx.module_context, eval_dynamic_shape_as_ivals(ctx, aval.shape)) for aval in ctx.avals_out]


def _partition(arg_shapes, arg_shardings, result_shape, result_sharding, backend_config: bytes):
    """What the partitioner asks for: the module of one device, and how operands and results are split."""
    name, platform, sizes, manual = json.loads(backend_config)
    mesh = AbstractMesh(tuple(size for _, size in sizes), tuple(axis for axis, _ in sizes))
    automatic = {axis: size for axis, size in sizes if axis not in manual}
    of_automatic = AbstractMesh(tuple(automatic.values()), tuple(automatic))
    call = _call_named(name)

    def partition(_, operands, results):
        specs, ranks = [operand.sharding.spec for operand in operands], [len(result.shape) for result in results]
        split = call.partition(of_automatic, operands, specs, ranks)
        of_operands, of_results = (
            tuple(NamedSharding(of_automatic, spec) for spec in specs) for specs in (split.operands, split.results)
        )
        return mesh, split.op, of_results, of_operands

    results = result_shape.tuple_shapes() if result_shape.is_tuple() else [result_shape]
    of_operands, of_results = (jax.tree.structure(tuple(arrays)) for arrays in ([0] * len(arg_shapes), [0] * len(results)))
    module = types.SimpleNamespace(platforms=(platform,), backend=None)
    callback = _ShardingCallbackInfo(
        propagate_user_sharding=None,
        partition=partition,
        to_mesh_pspec_sharding=lambda sharding, rank: NamedSharding(of_automatic, _spec_of(sharding, of_automatic, rank)),
        in_tree=of_operands,
        out_tree=of_results,
        infer_sharding_from_operands=None,
        module_context=module,
        mesh=mesh,
        static_args=(),
    )
    _sharding_callbacks[backend_config] = callback
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # one device's program knows nothing of explicit axes
        return _partitioned_module(arg_shapes, arg_shardings, result_shape, result_sharding, backend_config)


def _unchanged(sharding, shape, backend_config):
    del shape, backend_config
    return sharding


def _not_inferred(arg_shapes, arg_shardings, result_shape, backend_config):
    raise NotImplementedError("jaxloss is partitioned by Shardy: set jax_use_shardy_partitioner, as is JAX's default")


if NAMED:
    dispatch.prim_requires_devices_during_lowering.add(_primitive)
    mlir.register_lowering(_primitive, _lowered)
    _callbacks: dict[str, Any] = {
        "name": TARGET,
        "prop_user_sharding": _unchanged,
        "partition": _partition,
        "infer_sharding_from_operands": _not_inferred,
        "can_side_effecting_have_replicated_sharding": True,
    }
    _register(**_callbacks)
    xla_bridge.register_plugin_callbacks(functools.partial(_register, **_callbacks))
