"""Where parameters and rows live on a device mesh: three axes, and one rule table by parameter path.

    data    rows are split, parameters repeated
    fsdp    rows are split, and parameters too; they are gathered where they are used
    tensor  heads, inner MLP width and vocabulary are split

Rules speak of the last axes of an array, so they hold for stacked and unstacked layers, gradients and optimiser moments.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

VERSION = "1"

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))

RULES: tuple[tuple[str, P], ...] = (
    (r"(^|/)own/", P()),  # an objective's own parameters are repeated everywhere
    (r"embed/weight$", P("tensor", "fsdp")),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"/(q|k|v|gate|up)/kernel$", P("fsdp", "tensor")),
    (r"/(o|down)/kernel$", P("tensor", "fsdp")),
    (r"/(q|k|v|gate|up)/bias$", P("tensor")),
    (r"/(o|down)/bias$", P()),
    (r"/(q|k|v|gate|up)/a$", P("fsdp", None)),
    (r"/(q|k|v|gate|up)/b$", P(None, "tensor")),
    (r"/(o|down)/a$", P("tensor", None)),
    (r"/(o|down)/b$", P(None, "fsdp")),
    (r"norm/scale$", P()),
)
"""(pattern of the path, axes of the array's last dimensions); the first match holds."""


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a mesh with the axes data, fsdp and tensor; the compiler chooses what is not pinned.

    Raises:
        ValueError: there are fewer devices than data * fsdp * tensor, a size is below 1, or devices of several processes would
            be left out.
    """
    sizes = (data, fsdp, tensor)
    devices = jax.devices() if devices is None else list(devices)
    if min(sizes) < 1 or math.prod(sizes) > len(devices):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} needs {math.prod(sizes)} devices, {len(devices)} are here; "
            f"choose sizes of at least 1 whose product is at most {len(devices)}"
        )
    if jax.process_count() > 1 and math.prod(sizes) < jax.device_count():
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} uses {math.prod(sizes)} of {len(devices)} devices; with "
            f"{jax.process_count()} processes it must use all, such as --config.mesh.data={len(devices)}"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[: math.prod(sizes)])


def param_shardings(tree: Any, mesh: Mesh) -> Any:
    """Gives each array of a tree its place.

    Args:
        tree: parameters, adapters, gradients or optimiser state, as arrays or shapes; scalars are repeated everywhere.
        mesh: from `make_mesh`.

    Returns:
        The same tree of `NamedSharding`.

    Raises:
        ValueError: no rule matches a path, or an axis does not divide a dimension.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: sharding_of(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh), tree
    )


def sharding_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Gives one array its place; see `param_shardings`."""
    if not shape:
        return NamedSharding(mesh, P())
    spec = next((spec for pattern, spec in RULES if re.search(pattern, path)), None)
    if spec is None:
        raise ValueError(f"no sharding rule for {path} of shape {shape}; add one to RULES in w2s_jax/models/sharding.py")
    spec = P(*[None] * (len(shape) - len(spec)), *spec)
    for dimension, axis in enumerate(spec):
        if axis is not None and shape[dimension] % mesh.shape[axis]:
            works = [n for n in range(1, mesh.size + 1) if shape[dimension] % n == 0]
            raise ValueError(
                f"mesh axis {axis}={mesh.shape[axis]} does not divide dimension {dimension} of {path}, which is "
                f"{shape[dimension]} long (shape {shape}); sizes that do, up to {mesh.size} devices: {works}"
            )
    return NamedSharding(mesh, spec)


def constrain_params(tree: Any, mesh: Mesh | None) -> Any:
    """Pins parameters, gradients or optimiser state to where the rules want them, inside a program; nothing without a mesh.

    Gradients are then summed where they are kept, and nothing is whole on one device in between.
    """
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, param_shardings(tree, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits rows [B, ...] over data and fsdp."""
    return NamedSharding(mesh, ROWS)


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Pins the rows of an activation [B, ...] to the data and fsdp axes; does nothing without a mesh.

    Left to itself the compiler may split activations along the width that the parameters are split along.

    Raises:
        ValueError: the axes do not divide B.
    """
    if mesh is None:
        return x
    if x.shape[0] % (split := mesh.shape["data"] * mesh.shape["fsdp"]):
        raise ValueError(f"{x.shape[0]} rows cannot be split over data * fsdp = {split} devices; use a multiple of {split}")
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def gather_width(weight: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Collects the width of the token table [V, D] from the fsdp axis before rows are looked up in it.

    The looked-up rows are split over the same axis along B; without this the compiler repeats them everywhere in between.
    """
    return weight if mesh is None else jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, P("tensor", None)))
