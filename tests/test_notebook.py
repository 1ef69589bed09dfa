"""docs/mnemonics.ipynb: it runs, and its committed outputs are what running it gives."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "mnemonics.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(committed, tmp_path_factory):
    """The same notebook, with the outputs that it has now. It writes its runs into the folder where it is run."""
    folder, notebook = tmp_path_factory.mktemp("notebook"), nbformat.from_dict(committed)
    for cell in code_of(notebook):
        cell.outputs, cell.execution_count = [], None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        where = {"metadata": {"path": str(folder)}}
        return nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def numbers(pattern, text):
    """The groups of each match, as numbers."""
    found = re.findall(pattern, text)
    return [tuple(map(float, groups)) for groups in found]


@pytest.mark.parametrize("which", ["committed", "executed"])
def test_its_numbers_are_sane(which, request):
    notebook = request.getfixturevalue(which)
    text = printed(notebook)
    (real, optimised) = numbers(r"trained on 20 \w+ exemplars: loss ([\d.]+), accuracy ([\d.]+)%", text)
    assert 0 < optimised[0] < real[0] - 0.2
    assert 100 > optimised[1] > real[1] + 5
    runs = numbers(r"(?m)^(?:herding|mnemonics) +3 per class +CNN +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", text)
    for *phases, average in runs:
        assert min(phases) > 25  # more than twice what guessing gives
        assert average == pytest.approx(sum(phases) / 3, abs=0.01)
    losses = numbers(r"phase \d: loss ([\d.]+) before, ([\d.]+) after, ([\d.]+) as 8-bit .* by ([\d.]+) of", text)
    assert (len(runs), len(losses)) == (2, 3)
    before, after, rounded, moved = map(sum, zip(*losses, strict=True))
    assert max(after, rounded) < before
    assert moved > 0.3
    data = [output.get("data", {}) for cell in code_of(notebook) for output in cell.outputs]
    assert sum("image/png" in kinds for kinds in data) == 3


def test_its_outputs_are_committed_and_small_and_its_links_lead_somewhere(committed):
    cells = code_of(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert NOTEBOOK.stat().st_size < 200_000
    links = [link for cell in committed.cells for link in re.findall(r"\]\(([^)#\s]+)", cell.source)]
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)
