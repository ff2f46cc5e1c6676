"""What no file of the package may do: run code that comes from data, or read what can carry code."""

from __future__ import annotations

import ast

import pytest

from trex2_mini.paths import REPOSITORY

FILES = sorted((REPOSITORY / "trex2_mini").glob("**/*.py"))
FORBIDDEN = {  # a dotted name, or its end -> why
    "pickle": "unpickling runs code", "cPickle": "unpickling runs code", "dill": "unpickling runs code",
    "cloudpickle": "unpickling runs code",
    "joblib": "its files are pickles", "shelve": "its files are pickles", "marshal": "reads code",
    "read_pickle": "unpickling runs code",
    "eval": "runs data", "exec": "runs data", "compile": "makes code of data", "__import__": "loads what data names",
    "yaml.load": "makes any Python object: safe_load", "yaml.unsafe_load": "makes any Python object",
    "yaml.full_load": "makes any Python object",
    "extractall": "members may leave the folder: download.unpack",
    "unpack_archive": "members may leave the folder: download.unpack",
    "os.system": "a shell", "os.popen": "a shell", "mktemp": "a race: tempfile.TemporaryDirectory",
    "xml.dom": "expands entities: formats.read_xml", "xml.sax": "expands entities: formats.read_xml",
    "verify=False": "no certificate is checked",
}  # fmt: skip


def uses(source: str) -> list[tuple[int, str]]:
    """(line, name) of what is imported or called, as far as FORBIDDEN or torch.load and numpy's load are concerned."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            names = [ast.unparse(node.func)]
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if names[0].endswith("torch.load") and options.get("weights_only") != "True":
                found.append((node.lineno, "torch.load without weights_only=True"))
            if (
                options.get("allow_pickle") == "True"
                or options.get("shell") == "True"
                or options.get("trust_remote_code") == "True"
            ):
                found.append((node.lineno, f"{names[0]} with {options}"))
            if options.get("verify") == "False":
                names.append("verify=False")
        else:
            continue
        for name in names:
            parts = name.split(".")
            ends = {".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
            if isinstance(node, ast.Call) and len(parts) > 1:
                ends -= {"eval", "exec", "compile"}  # model.eval(), re.compile(), torch.compile()
            found += [(node.lineno, f"{end}: {FORBIDDEN[end]}") for end in ends & FORBIDDEN.keys()]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_nothing_runs_code_from_data(path):
    assert uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import torch; torch.load('a')",
        "torch.load('a', weights_only=False)", "eval('1')",
        "exec(text)", "import yaml; yaml.load(x)", "archive.extractall('out')", "subprocess.run(line, shell=True)",
        "numpy.load('a', allow_pickle=True)",
        "from joblib import load", "session.get(url, verify=False)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds(line):
    assert uses(line)


def test_what_is_meant_to_be_allowed():
    assert not uses(
        "model.eval(); re.compile('a'); torch.compile(f); yaml.safe_load(x); torch.load('a', weights_only=True)"
    )


def test_no_pickles_in_the_repository():
    """Weights and tables that come along are safetensors, JSON, CSV and YAML: no file here is a pickle, whatever its
    ending.
    """
    for path in (REPOSITORY / "data" / "checkpoints").glob("**/*"):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(4)
            assert path.suffix in {".safetensors", ".json", ".md", ".jsonl", ".csv", ".png", ".jpg", ".txt"}, path
            assert not start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path
