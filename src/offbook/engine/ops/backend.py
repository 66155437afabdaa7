"""The interface of the operations that a backend computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.projection import Part, Projection


class Backend(ABC):
    """Computes the operations. Autograd can differentiate `norm`, `rotate`, `project`, `attend`."""

    @abstractmethod
    def supports(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> bool:
        """Whether it computes layers whose tensors have these widths.

        Args:
            device: that the layer is on.
            dtype: of its hidden states.
            widths: the features, channels or vocabulary sizes of its tensors.
        """

    @abstractmethod
    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x` divided by its root mean square, times a frozen weight; over the last dimension."""

    @abstractmethod
    def rotate(
        self, x_THC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor
    ) -> torch.Tensor:
        """Rotary positions: channel i of a head is rotated with channel i + C/2."""

    @abstractmethod
    def project(
        self,
        x_TI: torch.Tensor,
        gate_TI: torch.Tensor | None,
        projections: Sequence[Projection],
        masks: Masks | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Linear layers with LoRA, [T, O] each, on one input: `x`, or `silu(gate) x`.

        Where a projection has dropout, its masks are those of `Masks.keep`.
        """

    def project_parts(
        self, x_TI: torch.Tensor, gate_TI: torch.Tensor | None, parts: Sequence[Part]
    ) -> tuple[torch.Tensor, ...]:
        """As `project`, for the tokens of several adapters, which lie one after another."""
        each = [
            self.project(
                x_TI[part.rows],
                None if gate_TI is None else gate_TI[part.rows],
                part.projections,
                part.masks,
            )
            for part in parts
        ]
        return tuple(torch.cat(outputs) for outputs in zip(*each, strict=True))

    @abstractmethod
    def attend(
        self,
        q_THC: torch.Tensor,
        k_TKC: torch.Tensor,
        v_TKC: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None,
        layout: Layout,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Causal attention within each sequence, and to keys and values [P, K, C] of a prefix.

        A query sees `window` keys, its own included, or all up to its own if `window` is None.
        """

    @abstractmethod
    def linear(
        self, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`x W'` and the bias, without a gradient; the weight may be a transposed view."""

    @abstractmethod
    def cross_entropy(
        self, logits_NV: torch.Tensor, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each token, float32 or wider [N], and the gradient of their sum [N, V].

        The gradient may overwrite the logits.
        """

    @abstractmethod
    def saved_by_projection(
        self, width: int, projections: int, *, gated: bool, dropout: bool
    ) -> int:
        """Values per token that `project` saves for backward, for an input of this width."""

    @abstractmethod
    def saved_by_attention(self, heads: int, key_heads: int, channels: int, longest: int) -> int:
        """Values per token that `attend` saves for backward, with sequences up to `longest`."""

    @abstractmethod
    def bytes_per_logit(self, dtype: torch.dtype) -> int:
        """Bytes of memory that `cross_entropy` takes for a logit, the logit itself included."""

    @abstractmethod
    def linear_workspace_bytes(self, width: int, dtype: torch.dtype) -> int:
        """Bytes of workspace that `linear` needs for an input of this width."""
