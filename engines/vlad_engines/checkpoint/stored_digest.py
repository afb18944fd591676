"""The digest of a checkpoint's weights from the bytes of its file. Needs neither torch nor safetensors."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.tensor_names import TensorNames

_TORCH_NAMES: Mapping[str, str] = {
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
    "F32": "torch.float32",
    "F64": "torch.float64",
}
_THREADS = 8


def stored_digest(files: CheckpointFiles, names: TensorNames) -> str:
    """What `fingerprint.weights_digest` says of the loaded weights.

    Args:
        names: of the file's tensors, already accounted for.

    Raises:
        CheckpointError: where the file cannot be read.
    """
    path = files.header.path
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    length = int.from_bytes(content[:8], "little")
    spans = {
        name: entry["data_offsets"]
        for name, entry in json.loads(bytes(content[8 : 8 + length])).items()
        if name != "__metadata__"
    }
    data = content[8 + length :]

    def digest(name: str) -> bytes:
        tensor = names.tensors[name]
        begin, end = spans[names.in_file[name]]
        hashed = hashlib.sha256(f"{name} {_TORCH_NAMES[tensor.dtype]} {tensor.shape} ".encode())
        hashed.update(data[begin:end])
        return hashed.digest()

    with ThreadPoolExecutor(_THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, sorted(names.in_file)))).hexdigest()
