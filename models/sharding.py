"""Which device holds which part of a parameter, from logical axes and a few rules."""

from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from models.config import DecoderConfig
from models.decoder import declare
from models.errors import ModelError
from models.parameters import Tensor, map_tensors


def shardings(config: DecoderConfig, mesh: Mesh, rules: Mapping[str, str]) -> PyTree[NamedSharding]:
    """Where each parameter goes, nested as the parameters are.

    Args:
        config: the architecture.
        mesh: the devices.
        rules: mesh axis by logical axis (`models.logical_axes` lists them); axes without a rule stay whole, and
            of two axes of one parameter with the same rule the first is split. {"width": "data"} shares out all
            memory; {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"} is tensor parallel.

    Raises:
        ModelError: for an axis that there is not, and for a size that the mesh cannot divide.

    Examples:
        >>> import jax
        >>> from models import small
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> tuple(shardings(small(13, 8, heads=2), mesh, {"width": "data"})["embedding"]["table"].spec)
        (None, 'data')
    """
    known: set[str] = set()

    def place(tensor: Tensor) -> NamedSharding:
        known.update(tensor.axes)
        parts: list[str | None] = []
        for size, axis in zip(tensor.shape, tensor.axes, strict=True):
            part = rules.get(axis)
            if part is not None and part not in mesh.shape:
                raise ModelError(f"the mesh has no axis {part!r} for {axis}: it has {', '.join(mesh.shape)}")
            part = None if part in parts else part
            if part is not None and size % mesh.shape[part]:
                raise ModelError(
                    f"{axis} {size} cannot be divided over {mesh.shape[part]} devices: leave it whole"
                )
            parts.append(part)
        return NamedSharding(mesh, PartitionSpec(*parts))

    placed = map_tensors(place, declare(config))
    if unknown := rules.keys() - known:
        raise ModelError(f"no parameter has an axis {min(unknown)!r}: there are {', '.join(sorted(known))}")
    return placed
