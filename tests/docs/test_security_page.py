"""docs/security.md names a test for each fault; those tests exist."""

from __future__ import annotations

import re

from tests.support.promql import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = [line for line in PAGE.split("## Faults")[1].splitlines() if line.startswith("| ")][1:]


def test_every_fault_has_its_test() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"
