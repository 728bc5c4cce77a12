"""Draws the figures of docs/losses.md into docs/figures/: `make docs`."""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ranksort import rank_sort_loss

FOLDER = Path(__file__).parent / "figures"
# Okabe and Ito's colours, told apart by colour-blind people; shapes and line styles differ, too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
STYLE = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "ranksort",  # the same file each time
}

# Ten examples: positives have a quality above 0.
SCORES = torch.tensor([1.2, 0.9, 0.7, 0.2, 0.0, -0.3, -0.5, -0.9, -1.2, -1.6], dtype=torch.float64)
QUALITIES = torch.tensor([0.0, 0.5, 0.7, 0.0, 0.9, 0.0, 0.6, 0.0, 0.0, 0.0], dtype=torch.float64)


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def smoothed_step(x: Tensor, delta: float) -> Tensor:
    return (x >= 0).to(x) if delta == 0 else (x / (2 * delta) + 0.5).clamp(0, 1)


def draw_smoothed_step() -> None:
    figure, axes = plt.subplots(figsize=(5.2, 2.8))
    x = torch.linspace(-1.5, 1.5, 601)
    for delta, colour, line in ((0.0, GREY, ":"), (0.5, BLUE, "-"), (1.0, ORANGE, "--")):
        axes.plot(x, smoothed_step(x, delta), line, color=colour, linewidth=2, label=f"δ = {delta:g}")
    axes.set(xlabel="$x_{ij} = s_j - s_i$", ylabel="$H(x_{ij})$", yticks=[0, 0.5, 1])
    axes.text(-1.5, 0.62, "j is scored below i:\ndoes not count", va="center")
    axes.text(1.5, 0.38, "j is scored above i:\ncounts as one", va="center", ha="right")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 0.9))
    save(figure, "smoothed_step")


def descend(scores: Tensor, ranking: float, sorting: float, steps: int = 60, lr: float = 0.5) -> Tensor:
    """The scores after gradient descent upon them, with so much of each part."""
    s = scores.clone().requires_grad_()
    for _ in range(steps):
        losses = rank_sort_loss(s, QUALITIES)
        (gradient,) = torch.autograd.grad(ranking * losses.ranking + sorting * losses.sorting, s)
        s = (s - lr * gradient).detach().requires_grad_()
    return s.detach()


def draw_descent(axes: Axes, title: str, ranking: float, sorting: float) -> None:
    before, after = SCORES, descend(SCORES, ranking, sorting)
    for x, (old, new, quality) in enumerate(zip(before.tolist(), after.tolist(), QUALITIES.tolist(), strict=True)):
        marker, colour = ("o", BLUE) if quality else ("s", ORANGE)
        axes.plot(x, old, marker, color=colour, markerfacecolor="white", markersize=7)
        axes.plot(x, new, marker, color=colour, markersize=7)
        if abs(new - old) > 0.25:
            axes.annotate(
                "", (x, new), (x, old), arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 4, "shrinkB": 4}
            )
    axes.set_xticks(range(10), [f"{q:.1f}" if q else "–" for q in QUALITIES.tolist()])
    losses = [
        " + ".join(
            f"{loss:.2f}" for loss, kept in zip(rank_sort_loss(s, QUALITIES), (ranking, sorting), strict=True) if kept
        )
        for s in (before, after)
    ]
    axes.set_title(f"{title}\nloss {losses[0]} → {losses[1]}", fontsize=10)
    axes.set_xlabel("quality of the example (–: negative)")


def draw_ranking_and_sorting() -> None:
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.6), sharey=True, layout="constrained")
    draw_descent(panels[0], "ranking alone", 1, 0)
    draw_descent(panels[1], "sorting alone", 0, 1)
    draw_descent(panels[2], "ranking + sorting", 1, 1)
    panels[0].set_ylabel("score (logit)")
    handles = [
        mpl.lines.Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=fill, label=label)
        for marker, colour, fill, label in (
            ("o", BLUE, "white", "positive, before"),
            ("o", BLUE, BLUE, "positive, after"),
            ("s", ORANGE, "white", "negative, before"),
            ("s", ORANGE, ORANGE, "negative, after"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    save(figure, "ranking_and_sorting")


def draw_gradient_by_score() -> None:
    """60 positives among 6,000 negatives, half-way through training."""
    random = torch.Generator().manual_seed(0)
    positive = -0.5 + 1.2 * torch.randn(60, generator=random, dtype=torch.float64)
    negative = -4 + 1.2 * torch.randn(6000, generator=random, dtype=torch.float64)
    quality = (0.75 + 0.08 * positive + 0.12 * torch.randn(60, generator=random, dtype=torch.float64)).clamp(0.5, 1)
    s = torch.cat([positive, negative]).requires_grad_()
    y = torch.cat([quality, torch.zeros_like(negative)])
    losses = rank_sort_loss(s, y)
    ranking, sorting = (torch.autograd.grad(loss, s, retain_graph=True)[0] for loss in losses)
    focal = torch.autograd.grad(sigmoid_focal_loss(s, (y > 0).double(), reduction="sum") / 60, s)[0]

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    order = negative.argsort()
    x = negative[order]
    left.plot(x, ranking[60:][order], color=BLUE, linewidth=2, label="RS Loss")
    left.plot(x, focal[60:][order], "--", color=ORANGE, linewidth=2, label="focal loss")
    left.plot(
        positive, torch.full_like(positive, -0.0002), "|", color=GREY, markersize=8, label="scores of the positives"
    )
    left.set(title="negatives: pushed down", xlim=(-4, 2.2), xlabel="score (logit)", ylabel="gradient of one example")
    left.legend(loc="upper left")

    order = positive.argsort()
    right.axhline(0, color=GREY, linewidth=0.8)
    right.plot(positive[order], focal[:60][order], "--", color=ORANGE, linewidth=2, label="focal loss")
    right.plot(positive[order], ranking[:60][order], color=BLUE, linewidth=2, label="RS Loss, ranking")
    dots = right.scatter(
        positive,
        sorting[:60],
        c=quality,
        cmap="cividis",
        s=22,
        edgecolors=GREY,
        linewidths=0.4,
        label="RS Loss, sorting",
    )
    figure.colorbar(dots, ax=right, label="quality")
    right.set(title="positives: below 0 is pulled up", xlabel="score (logit)")
    right.legend(loc="lower right")
    save(figure, "gradient_by_score")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        draw_smoothed_step()
        draw_ranking_and_sorting()
        draw_gradient_by_score()


if __name__ == "__main__":
    main()
