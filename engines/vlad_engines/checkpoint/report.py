"""Sets the report of `inspect_checkpoint` as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def format_report(report: Mapping[str, Any]) -> str:
    """The report as readable lines; see `inspect_checkpoint` for its fields."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"checkpoint  {report['checkpoint']}"
    if "files" in report:
        yield from _file_lines(report["files"], report["tokenizer"])
    if "contract" in report:
        yield from _contract_lines(report["contract"])
    if "norm_stats" in report:
        yield from _norm_stats_lines(report["norm_stats"])
    for title in ("warnings", "problems"):
        if report[title]:
            yield ""
            yield title
            for text in report[title]:
                yield "  - " + text.replace("\n", "\n    ")
    yield ""
    yield "this checkpoint cannot be served" if report["problems"] else "this checkpoint can be served"


def _file_lines(files: Mapping[str, Any], tokenizer: str | None) -> Iterator[str]:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(files["dtypes"].items()))
    yield f"  directory  {files['directory']}"
    yield f"  layout     {files['layout']}"
    yield f"  weights    {files['weights']}, {files['weights_bytes'] / 1e6:,.1f} MB, {dtypes} tensors"
    yield f"  parameters {files['parameters'] / 1e6:,.1f} million"
    for name, reason in files["left_out"].items():
        yield f"  left out   {name}: {reason}"
    yield f"  tokenizer  {tokenizer or 'not found'}"


def _contract_lines(contract: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield "contract"
    rows = [(name, _value(name, entry["value"]), entry["source"]) for name, entry in contract.items()]
    wide = max(len(value) for _, value, _ in rows if len(value) <= 40)
    for name, value, source in rows:
        yield f"  {name:<20} {value:<{wide}}  {f'[{source}]' if source else ''}".rstrip()


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if name == "model":
        return ", ".join(
            f"{part} {value[part]['depth']} layers of {value[part]['width']}"
            for part in ("siglip", "vlm", "expert")
        )
    if name == "delta_mask":
        return "".join("D" if relative else "." for relative in value) + " (D: difference to the state)"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _norm_stats_lines(stats: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"norm stats  {stats['source']}"
    for feature in ("state", "actions"):
        yield f"  {feature}, {stats[feature]['width']} numbers"
        for name, values in stats[feature].items():
            if name != "width":
                yield f"    {name:<4} " + " ".join(f"{value:9.4f}" for value in values)
