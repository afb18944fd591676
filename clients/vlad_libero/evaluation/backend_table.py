"""The table of backends as data and as text, from the summaries of its rows. Starts nothing."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from vlad_libero.evaluation.rows import REFERENCE, Row
from vlad_libero.evaluation.table import compare

_OF_SUMMARY = (
    "backend",
    "precision",
    "steps",
    "variant",
    "episodes",
    "successes",
    "success_rate",
    "interval",
    "wrong_object_rate",
    "mean_steps_of_successes",
    "median_infer_ms",
    "per_task",
)


def finished_row(
    row: Row, summary: Mapping[str, Any], commands: Sequence[str], reference: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A row that ran, with the paired test against the reference where there is one.

    Args:
        summary: of `eval_libero`.
        commands: of daemon and evaluation.
        reference: summary of the reference row; None for that row itself, or where it did not run.

    Raises:
        ResultsError: where both cannot be paired.
    """
    content = {name: summary[name] for name in _OF_SUMMARY}
    content["device"] = (summary.get("served") or {}).get("device")
    paired = None
    if reference is not None and row.name != REFERENCE:
        paired = compare(reference, summary, also_different=("replan_steps",))
    return {
        "row": row.name,
        "status": "ran",
        **content,
        "against_reference": paired,
        "command": list(commands),
    }


def missing_row(row: Row, reason: str) -> dict[str, Any]:
    """A row that could not run, with the reason and no numbers: nothing else stands in for it."""
    return {
        "row": row.name,
        "status": "not run",
        "reason": reason,
        "backend": row.backend,
        "precision": row.precision,
        "steps": row.steps,
        "variant": row.variant,
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a page."""
    lines = [
        "| backend | precision | steps | variant | on | success | 95 % interval | wrong bowl "
        "| only reference / only this | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["backend"], row["precision"], str(row["steps"]), row["variant"]]
        if row["status"] == "ran" and row["episodes"]:
            low, high = row["interval"]
            cells += [
                row["device"] or "",
                f"{row['successes']}/{row['episodes']} ({row['success_rate']:.1%})",
                f"{low:.1%} to {high:.1%}",
                f"{row['wrong_object_rate']:.1%}",
                *_paired(row["against_reference"]),
            ]
        else:
            reason = f"not run: {row.get('reason', 'no episodes')}".replace("|", "/")
            cells += ["", reason, "", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _paired(comparison: Mapping[str, Any] | None) -> tuple[str, str]:
    if comparison is None:
        return "", ""
    return f"{comparison['only_first']} / {comparison['only_second']}", f"{comparison['p_value']:.2g}"
