"""Nothing that a stranger may have written is ever executed: no pickle, no eval, no shell.

An unpickler is allowed where it decides itself which classes there are, and so is the name of the error.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

from tests.support.daemon import ROOT

FILES = sorted(
    path
    for folder in ("server", "engines", "configs", "clients", "training")
    for path in (ROOT / folder).rglob("*.py")
)

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
PICKLE_BY_DEFAULT = {"np.load": "allow_pickle", "np.save": "allow_pickle", "torch.load": "weights_only"}
SAFE_VALUES = {"allow_pickle": False, "weights_only": True}


def faults(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    strict_unpicklers = {
        id(base)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(item, ast.FunctionDef) and item.name == "find_class" for item in node.body)
        for base in node.bases
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "pickle" or alias.asname]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (
            f"line {node.lineno}: {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES
        )
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) == "pickle"
            and node.attr != "UnpicklingError"
            and id(node) not in strict_unpicklers
        ):
            yield f"line {node.lineno}: pickle.{node.attr}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            option = PICKLE_BY_DEFAULT.get(name.replace("numpy.", "np."))
            if name in FORBIDDEN_CALLS or given.get("shell") == "True" or given.get("allow_pickle") == "True":
                yield f"line {node.lineno}: {ast.unparse(node)[:80]}"
            # numpy.load refuses pickles by default; torch.load and numpy.save have not always.
            elif option and name != "np.load" and given.get(option) != str(SAFE_VALUES[option]):
                yield f"line {node.lineno}: {name} without {option}={SAFE_VALUES[option]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_neither_reads_nor_writes_pickles(path: pathlib.Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as safe",
        "import pickle\nclass Any(pickle.Unpickler): pass",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.save('x', 1)",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
    ],
)
def test_the_search_would_notice(source: str) -> None:
    assert list(faults(source))
