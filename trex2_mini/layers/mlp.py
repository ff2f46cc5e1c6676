"""The small perceptron of DETR's box heads, and the feed-forward block of its transformer layers."""

from torch import Tensor, nn


class MLP(nn.Sequential):
    """`layers` linear layers with ReLU between them: [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        sizes = [inputs] + [hidden] * (layers - 1) + [outputs]
        parts: list[nn.Module] = []
        for index in range(layers):
            parts += [nn.Linear(sizes[index], sizes[index + 1])] + ([nn.ReLU()] if index < layers - 1 else [])
        super().__init__(*parts)


class FeedForward(nn.Module):
    """Linear, ReLU, Linear, residual, LayerNorm (post-norm, as in Deformable DETR)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(self.linear1(x).relu_()))
