"""The cost of PAA's assignment compared with one scikit-learn fit per object, as published.

python benchmarks/paa_assignment.py [--device cpu] [--runs 15]

Both get the losses of the same candidates, a few hundred per object as for 800 x 1333 pixels: `choose_positives` does the whole
assignment, the peer only fits and computes members and likelihoods. The two alternate; figures are medians and their ratio. On a CPU,
the CPU time of one thread is measured, which other jobs on the machine hardly affect.
"""

import argparse
import statistics
import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ranksort.models.paa import choose_positives

LEVELS, TOP_K = 5, 9


def make(objects: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of candidates, their objects and their levels: a few hundred for each object, on two to five levels."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(objects).repeat_interleave(torch.randint(20, 600, (objects,), generator=generator))
    spread = torch.randint(2, LEVELS + 1, (objects,), generator=generator)
    level = (torch.rand(len(owner), generator=generator) * spread[owner]).long()
    losses = 0.8 + torch.randn(len(owner), generator=generator).abs() + torch.rand(objects, generator=generator)[owner]
    return losses, owner, level


def best_of_each(losses: Tensor, owner: Tensor, level: Tensor) -> list[Tensor]:
    """The losses that each object's mixture is fitted to."""
    rows = []
    for i in range(int(owner.max()) + 1):
        of_levels = [losses[(owner == i) & (level == k)] for k in range(LEVELS)]
        rows.append(torch.cat([x.topk(min(TOP_K, len(x)), largest=False).values for x in of_levels]).sort().values)
    return rows


def fit_one_by_one(rows: list[Tensor]) -> None:
    for row in rows:
        x = row.double().cpu().numpy()[:, None]
        mixture = GaussianMixture(
            2,
            weights_init=[0.5, 0.5],
            means_init=[x.min(0), x.max(0)],
            precisions_init=[[1.0], [1.0]],
            covariance_type="diag",
            reg_covar=1e-5,
        ).fit(x)
        mixture.predict(x)
        mixture.score_samples(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    now = time.thread_time if options.device == "cpu" else time.perf_counter
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"torch {torch.__version__}, {options.device}, one thread, median of {options.runs}")
    print(f"{'objects':>8}{'candidates':>12}{'ours ms':>10}{'one by one ms':>15}{'ratio':>8}")
    for objects in (30, 120, 480):  # about as many as in 4, 16 and 64 images of COCO
        losses, owner, level = (x.to(options.device) for x in make(objects))
        rows = best_of_each(losses, owner, level)
        ours, theirs = [], []
        for run in range(options.runs + 1):
            start = now()
            choose_positives(losses, owner, level, num_objects=objects, num_levels=LEVELS).cpu()
            middle = now()
            fit_one_by_one(rows)
            if run:
                ours.append(1000 * (middle - start))
                theirs.append(1000 * (now() - middle))
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"{objects:>8}{len(losses):>12}{a:>10.1f}{b:>15.1f}{b / a:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
