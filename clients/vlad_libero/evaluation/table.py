"""A summary as text, and two of them compared."""

from __future__ import annotations

from typing import Any, Collection, Mapping

from vlad_libero.errors import ResultsError
from vlad_libero.evaluation.results import outcomes
from vlad_libero.evaluation.statistics import discordant, mcnemar_exact


def table(summary: Mapping[str, Any]) -> str:
    """Success per task and over all, with 95 % intervals."""
    lines = [f"{'task':>4}  {'success':>9}  {'rate':>6}  {'95 % interval':>15}  instruction"]
    lines += [f"{row['task']:>4}  {_numbers(row)}  {row['prompt']}" for row in summary["per_task"]]
    lines.append(f"{'all':>4}  {_numbers(summary)}")
    if summary["episodes"]:
        lines.append(
            f"wrong object lifted in {summary['wrong_object_rate']:.1%} of episodes; "
            f"median request {summary['median_infer_ms']:.1f} ms"
        )
    return "\n".join(lines)


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], also_different: Collection[str] = ()
) -> dict[str, Any]:
    """Paired comparison of two runs on the episodes that both have.

    Args:
        also_different: fields of the protocol that may differ, beside how many episodes there are.

    Returns:
        `episodes`, `first_rate`, `second_rate`, `only_first`, `only_second`, `p_value` of McNemar's
        exact test, two-sided.

    Raises:
        ResultsError: where the runs differ in more than how many episodes they have, or share none.
    """
    different = sorted(
        key
        for key, value in first["protocol"].items()
        if key not in {"tasks", "trials", *also_different} and second["protocol"].get(key) != value
    )
    if different:
        raise ResultsError(f"runs of different protocols cannot be paired: {', '.join(different)} differ")
    ours, theirs = outcomes(first), outcomes(second)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ResultsError("the runs have no episode in common")
    a, b = [ours[key] for key in shared], [theirs[key] for key in shared]
    only_first, only_second = discordant(a, b)
    return {
        "episodes": len(shared),
        "first_rate": sum(a) / len(a),
        "second_rate": sum(b) / len(b),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": mcnemar_exact(only_first, only_second),
    }


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The comparison in three lines."""
    return (
        f"{comparison['episodes']} paired episodes: "
        f"first {comparison['first_rate']:.1%}, second {comparison['second_rate']:.1%}\n"
        f"only the first succeeded in {comparison['only_first']}, only the second in "
        f"{comparison['only_second']}\n"
        f"McNemar's exact test, two-sided: p = {comparison['p_value']:.3g}"
    )


def _numbers(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    rate = "-" if row["success_rate"] is None else f"{row['success_rate']:.1%}"
    share = f"{row['successes']}/{row['episodes']}"
    return f"{share:>9}  {rate:>6}  {f'{low:.1%} - {high:.1%}':>15}"
