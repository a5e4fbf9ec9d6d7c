"""What a model's probabilities say about the ancestors of its answer."""

import math

import torch

from cataloger.taxonomy import Taxonomy


class Levels:
    """The category tree on a device. Its sizes are known here: asked of the device, they would have to wait for it."""

    def __init__(self, taxonomy: Taxonomy, device: torch.device | str) -> None:
        self.groups = [torch.from_numpy(group).to(device) for group in taxonomy.groups]
        self.sizes = [int(group.max()) + 1 for group in taxonomy.groups]
        self.depths = torch.from_numpy(taxonomy.depths).to(device)

    def confidences(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows, levels]: the sum of the [rows, categories] probabilities below each ancestor of the label, NaN below its depth."""
        columns = []
        for level, (group, size) in enumerate(zip(self.groups, self.sizes, strict=True)):
            mass = probabilities.new_zeros(len(probabilities), size).index_add_(1, group, probabilities)
            column = mass.gather(1, group[labels].unsqueeze(1)).squeeze(1)
            columns.append(column.masked_fill(self.depths[labels] <= level, math.nan))
        return torch.stack(columns, dim=1).clamp(max=1.0)
