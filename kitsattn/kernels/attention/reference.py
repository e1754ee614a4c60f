"""Self-attention with residual and gate in plain PyTorch: the definition, the CPU path, the truth in tests.

    average[i] = sum_j softmax_j(scale * <q[i], k[j]>) v[j]
    out[i]     = residual[i] + gate * average[i]

the embedded Gaussian of Wang et al., Non-local Neural Networks, CVPR 2018, with a scale and a learnt gate.
"""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Return the softmax-weighted average of all values for every query, gated and added to the residual.

    Arguments and result are those of `operation.attention`, which has checked them.
    """
    # The axis of one head is there because PyTorch's fused attention takes four axes only.
    average = scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), scale=scale).squeeze(1)
    if residual is None or gate is None:
        return average
    return residual + (gate * average).to(residual.dtype)
