"""From rows of several devices or parts to the best and the front of all of them, on the host; exact."""

from collections.abc import Sequence

import numpy as np

from watos_jax.sweeps.columns import Rows
from watos_jax.sweeps.metrics import METRICS


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def taken(rows: Rows, where: np.ndarray) -> Rows:
    """Some of the rows, by their places or a mask."""
    return {name: values[where] for name, values in rows.items()}


def best(rows: Rows, by: str, top: int, groups: np.ndarray | None = None) -> Rows:
    """The best rows of each group: groups in order, best first, the first of equals first.

    Args:
        rows: with the column `index`.
        by: metric that is compared, in its better direction.
        top: how many of each group.
        groups: number of the group of each row; one group where None.
    """
    goal = METRICS[by].sign * rows[by].astype(np.float64)
    groups = np.zeros(len(goal), int) if groups is None else groups
    order = np.lexsort((rows["index"], goal, groups))
    ranked = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    return taken(rows, order[rank < top])


def front(rows: Rows, metrics: Sequence[str], groups: np.ndarray | None = None) -> Rows:
    """The rows that no row of their group dominates: groups in order, by the first metric.

    Args:
        rows: with the column `index`.
        metrics: that are compared, each in its better direction.
        groups: number of the group of each row; one group where None.
    """
    goals = np.stack([METRICS[name].sign * rows[name].astype(np.float64) for name in metrics], axis=1)
    return taken(rows, undominated(rows["index"], goals, np.zeros(len(goals), int) if groups is None else groups))


def undominated(index: np.ndarray, goals: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Places of the points that no point of their group dominates: groups in order, by the first goal.

    Args:
        index: numbers of the points; of equal points the first is kept.
        goals: smaller is better, shape (points, goals).
        groups: number of the group of each.
    """
    kept = []
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        columns = [index[mine], *goals[mine].T[::-1]]
        mine = mine[np.lexsort(columns)]
        front = np.zeros((0, goals.shape[1]))
        for row in mine:  # in rising order of the first goal, so that later rows never dominate earlier ones
            if not (front <= goals[row]).all(axis=1).any():
                front = np.concatenate([front, goals[row][None]])
                kept.append(row)
    return np.array(kept, dtype=int)
