"""AP Loss vs. cross-entropy: a linear classifier of rare positives that has to rank well within each of several groups.

python examples/ap_loss_classifier.py                     # less than a minute

Think of images, days, clinics or queries: 5 % are positives, and the metric is the average precision within a group. Each group's
features have their own offset, which is unrelated to the classes. Cross-entropy needs one common level of scores, so it gives up
informative directions in which the groups differ. AP Loss on one group at a time only depends on the order: the offset adds the same to
all scores of a group, so it has no effect. Without offsets there is nothing to gain, as the second row shows; and if the groups are
known, their means can be subtracted, after which cross-entropy does as well as AP Loss without that knowledge.

Both losses use the same data, model, optimiser and 6 settings; the setting with the best validation AP is tested. Cross-entropy gets
five times as many steps, because they are cheap and it needs them: with as few as AP Loss it is further behind.
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from ranksort import average_precision_loss

GROUPS, GROUP_SIZE, FEATURES = 24, 250, 20
TRAINING, VALIDATION, TEST = slice(0, 8), slice(8, 12), slice(12, 24)  # groups
AP_STEPS, CE_STEPS = 80, 400
LEARNING_RATES, WEIGHT_DECAYS = (0.03, 0.1, 0.3), (0.01, 1.0)

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, targets)


def ap_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Examples passed together are ranked together: here, those of a group."""
    return torch.stack([average_precision_loss(s, y) for s, y in zip(logits, targets, strict=True)]).mean()


def make_groups(offset: float, seed: int) -> tuple[Tensor, Tensor]:
    """Features [groups, examples, features] and targets [groups, examples]; the groups differ by `offset` in three directions."""
    x, y = make_classification(
        GROUPS * GROUP_SIZE,
        FEATURES,
        n_informative=10,
        n_redundant=0,
        n_clusters_per_class=1,
        weights=[0.95],
        class_sep=0.7,
        random_state=seed,
    )
    random = np.random.default_rng(seed)
    x = ((x - x.mean(0)) / x.std(0)).reshape(GROUPS, GROUP_SIZE, FEATURES)
    x += offset * random.normal(size=(GROUPS, 1, 3)) @ random.normal(size=(3, FEATURES))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y.reshape(GROUPS, GROUP_SIZE), dtype=torch.float32)


def train(loss: Loss, x: Tensor, y: Tensor, lr: float, weight_decay: float, steps: int, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(FEATURES, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x).squeeze(-1), y).backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def mean_ap(model: nn.Linear, x: Tensor, y: Tensor) -> float:
    scores = model(x).squeeze(-1)
    return float(np.mean([average_precision_score(t, s) for t, s in zip(y.numpy(), scores.numpy(), strict=True)]))


def tuned_ap(loss: Loss, offset: float, steps: int, seed: int) -> float:
    """The test AP of the setting with the best validation AP."""
    x, y = make_groups(offset, seed)
    models = [
        train(loss, x[TRAINING], y[TRAINING], lr, decay, steps, seed)
        for lr, decay in itertools.product(LEARNING_RATES, WEIGHT_DECAYS)
    ]
    best = max(models, key=lambda model: mean_ap(model, x[VALIDATION], y[VALIDATION]))
    return mean_ap(best, x[TEST], y[TEST])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    options = parser.parse_args()
    print(f"test AP over {len(options.seeds)} seeds    AP Loss          cross-entropy    AP Loss wins")
    for offset in (2.0, 0.0):
        ap = np.array([tuned_ap(ap_loss, offset, AP_STEPS, seed) for seed in options.seeds])
        ce = np.array([tuned_ap(cross_entropy, offset, CE_STEPS, seed) for seed in options.seeds])
        columns = f"{ap.mean():.3f} ± {ap.std():.3f}    {ce.mean():.3f} ± {ce.std():.3f}    {(ap > ce).sum()}"
        print(f"groups differ by {offset:.0f}       {columns}", flush=True)


if __name__ == "__main__":
    main()
