"""The base of weights that lie in memory as a kernel wants them, good for nothing but a product."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F


class OpaqueWeight(Tensor):
    """The weight of a linear layer whose numbers only its own product can read.

    Args:
        weight: ``(outputs, inputs)``: its shape, dtype and device are kept.
    """

    name: ClassVar[str]
    """The kind of weight, for messages."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> Self:
        """Create it without numbers; a subclass keeps those."""
        self: Self = Tensor._make_wrapper_subclass(
            cls, weight.shape, dtype=weight.dtype, device=weight.device
        )
        return self

    def product(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``inputs @ self.T + bias``; inputs have the dtype of the weight."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Multiply, or return attributes such as the shape."""
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func in (Tensor.detach, Tensor.requires_grad_):  # by nn.Parameter
            return args[0]
        if func is Tensor.to:  # by Lightning, to where and what it is
            plain = torch.empty(0, dtype=args[0].dtype, device=args[0].device)
            moved = plain.to(*args[1:], **(kwargs or {}))
            if (moved.dtype, moved.device) == (plain.dtype, plain.device):
                return args[0]
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_args: Any, **_kwargs: Any) -> Any:  # type: ignore[override]
        """Refuse everything else."""
        raise NotImplementedError(f"{func} of {cls.name}")


def _linear(inputs: Tensor, weight: OpaqueWeight, bias: Tensor | None = None) -> Tensor:
    return weight.product(inputs, bias)
