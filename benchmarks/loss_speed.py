"""The cost of the ranking losses compared with focal loss, with one sort of the logits, and with the published loop.

python benchmarks/loss_speed.py --threads 1 --runs 7 [--shapes rpn roi atss lvis dense] [--logits init sparse trained overlap] [--growth]
python benchmarks/loss_speed.py --device cuda --runs 30

Each row is one shape and one kind of logits; all contestants alternate within the row, forward and backward, and the figures are ratios
of medians. `limit` reads the logits once and writes a zero gradient. `loop` is the published algorithm, one positive at a time, over
the negatives in its reach; it is timed on a few positives and extrapolated to all. `bucket` is the approximation of Yavuz et al. (ECCV
2024), which puts the negatives between two positives into one bucket; it is left out if its matrices would not fit. `bytes/logit` is
the peak memory that a call allocates in addition to its inputs. On a GPU, times are until it has finished, and `launches` counts the
kernels and copies that RS Loss starts there.

With `--growth`: the cost of 4 times the negatives and of 10 times the positives instead.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import sigmoid_focal_loss

from ranksort import rank_sort_loss

SHAPES = {
    "rpn": (1_070_000, 800),
    "roi": (320_000, 1_500),
    "atss": (7_170_000, 1_000),
    "lvis": (4_800_000, 2_000),
    "dense": (7_170_000, 20_000),
}
LOOP_POSITIVES = 10


# Large tensors keep their pages; otherwise a contestant whose temporaries are returned to the system pays for them each time.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def make(negatives: int, positives: int, kind: str) -> tuple[Tensor, Tensor]:
    """Logits and targets, in random places."""
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(negatives, generator=generator)
    p = torch.randn(positives, generator=generator)
    if kind == "init":
        n, p = n * 0.05 - 4.6, p * 0.05 - 4.6
    elif kind == "sparse":
        n, p = n * 1.5 - 12, p * 0.5
        n[torch.rand(negatives, generator=generator) < 0.01] += 12
    elif kind == "trained":
        n, p = n * 1.5 - 6, p * 1.5
    else:
        n, p = n - 3, p - 3
    logits = torch.cat([n, p])
    targets = torch.cat([torch.zeros(negatives), torch.rand(positives, generator=generator).clamp(0.01)])
    order = torch.randperm(len(logits), generator=generator)
    return logits[order], targets[order]


def ranksort(logits: Tensor, targets: Tensor) -> None:
    sum(rank_sort_loss(logits, targets)).backward()


def focal(logits: Tensor, labels: Tensor) -> None:
    sigmoid_focal_loss(logits, labels, reduction="sum").backward()


def one_sort(logits: Tensor, targets: Tensor) -> None:
    torch.sort(logits.detach())


def limit(logits: Tensor, targets: Tensor) -> None:
    logits.detach().sum()
    torch.zeros_like(logits)


def loop(logits: Tensor, targets: Tensor) -> None:
    """The published algorithm (Oksuz et al. 2021, algorithm 1 of the supplement) for the first few positives, δ = 0.5."""
    s = logits.detach()
    positive = targets > 0
    p = s[positive]
    n = s[(targets == 0) & (s >= p.min() - 0.5)]
    grad = torch.zeros_like(n)
    for logit in p[:LOOP_POSITIVES]:
        above_n = (n - logit + 0.5).clamp(0, 1)
        above_p = (p - logit + 0.5).clamp(0, 1)
        fp = above_n.sum()
        error = fp / (fp + above_p.sum())
        grad += above_n * (error / fp.clamp(min=1e-10))


def bucketed(logits: Tensor, targets: Tensor) -> None:
    """Bucketed RS Loss (Yavuz et al., ECCV 2024, section 4): neighbouring negatives in the ranking count as equal ones."""
    s = logits.detach()
    order = s.argsort(descending=True)
    positive = targets[order] > 0
    p, y = s[order][positive], targets[order][positive]
    bucket = positive.cumsum(0)[~positive]  # number of positives above
    size = torch.bincount(bucket, minlength=len(p) + 1).to(s)
    mean = torch.bincount(bucket, s[order][~positive], minlength=len(p) + 1) / size.clamp(min=1)
    above_n = (mean - p[:, None] + 0.5).clamp(0, 1) * size
    above_p = (p - p[:, None] + 0.5).clamp(0, 1)
    fp, rank_positive = above_n.sum(1), above_p.sum(1)
    ranking = fp / (rank_positive + fp)
    worse = above_p * (y < y[:, None])
    better = above_p - worse
    current = (above_p * (1 - y)).sum(1) / rank_positive
    sorting = current - (better * (1 - y)).sum(1) / better.sum(1)
    handed_on = (sorting / worse.sum(1).clamp(min=1e-10)) @ worse
    grad = torch.empty_like(s)
    grad[order[positive]] = (handed_on - sorting - ranking) / len(p)
    to_bucket = (ranking / fp.clamp(min=1e-10)) @ above_n / len(p)
    grad[order[~positive]] = (to_bucket / size.clamp(min=1))[bucket]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    contestants: list[Callable[[Tensor, Tensor], None]], logits: Tensor, targets: Tensor, runs: int
) -> list[float]:
    """Median seconds of each, alternating."""
    seconds: list[list[float]] = [[] for _ in contestants]
    labels = (targets > 0).float()  # targets for focal loss
    for run in range(runs + 1):
        for times, contestant in zip(seconds, contestants, strict=True):
            leaf = logits.detach().requires_grad_()
            wait(logits.device)
            start = time.perf_counter()
            contestant(leaf, labels if contestant is focal else targets)
            wait(logits.device)
            if run:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def peak_bytes(contestant: Callable[[Tensor, Tensor], None], logits: Tensor, targets: Tensor) -> int:
    """Peak memory of a call, from the allocator's own record."""
    leaf = logits.detach().requires_grad_()
    if logits.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant(leaf, targets)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        contestant(leaf, targets)
    now = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def launches(contestant: Callable[[Tensor, Tensor], None], logits: Tensor, targets: Tensor) -> int:
    """Number of kernels and copies that a call starts on the GPU."""
    leaf = logits.detach().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        contestant(leaf, targets)
        torch.cuda.synchronize()
    return sum(event.device_type() == DeviceType.CUDA for event in recorded.profiler.kineto_results.events())


def compare(shapes: list[str], kinds: list[str], runs: int, device: torch.device) -> None:
    columns = ["RS ms", "RS/focal", "RS/sort", "RS/limit", "loop/RS", "bucket/RS", "bytes/logit"]
    columns += ["launches"] if device.type == "cuda" else []
    print(f"{'shape':8}{'logits':10}" + "".join(f"{name:>13}" for name in columns))
    for shape in shapes:
        for kind in kinds:
            logits, targets = (x.to(device) for x in make(*SHAPES[shape], kind))
            contestants = [ranksort, focal, one_sort, limit, loop]
            if SHAPES[shape][1] <= 5_000:
                contestants.append(bucketed)
            rs, fl, st, lm, lp, *bucket = measure(contestants, logits, targets, runs)
            lp *= SHAPES[shape][1] / LOOP_POSITIVES
            memory = peak_bytes(ranksort, logits, targets) / len(logits)
            ratios = [f"{x:13.2f}" for x in (rs / fl, rs / st)] + [f"{x:13.1f}" for x in (rs / lm, lp / rs)]
            ratios.append(f"{bucket[0] / rs:13.1f}" if bucket else f"{'-':>13}")
            ratios.append(f"{memory:13.1f}")
            ratios += [f"{launches(ranksort, logits, targets):13}"] if device.type == "cuda" else []
            print(f"{shape:8}{kind:10}{1000 * rs:13.{2 if rs < 0.01 else 1}f}" + "".join(ratios), flush=True)


def growth(kinds: list[str], runs: int, device: torch.device) -> None:
    print(f"{'logits':10}{'4 N / N':>13}{'10 P / P':>13}")
    for kind in kinds:
        n, many_n, p, many_p = (
            measure([ranksort], *(x.to(device) for x in make(*size, kind)), runs)[0]
            for size in ((1_000_000, 1_000), (4_000_000, 1_000), (1_000_000, 10_000), (1_000_000, 100_000))
        )
        print(f"{kind:10}{many_n / n:13.2f}{many_p / p:13.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--logits", nargs="+", default=["init", "sparse", "trained", "overlap"])
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cuda = options.device.type == "cuda"
    name = torch.cuda.get_device_name(options.device) if cuda else f"{options.threads} threads"
    print(f"torch {torch.__version__}, {name}, median of {options.runs}")
    if options.growth:
        growth(options.logits, options.runs, options.device)
    else:
        compare(options.shapes, options.logits, options.runs, options.device)


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)  # glibc reads them at start-up
    main()
