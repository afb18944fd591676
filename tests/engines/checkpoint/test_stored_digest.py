"""The digest of a file's weights is that of the loaded ones."""

from __future__ import annotations

import pytest

from tests.support import fidelity
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.export.fingerprint import weights_digest


def test_bytes_of_the_file_give_the_digest_of_its_tensors(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    weights = open_weights(open_policy_checkpoint("demo", environment="LIBERO"), "cpu")
    assert weights.digest() == weights_digest(weights)


def test_random_weights_have_no_digest() -> None:
    assert open_weights(fidelity.checkpoint("pi05"), "cpu").digest() is None
