"""Every command and every Python block of the documentation runs as printed, page by page, in its order.

Each command is a process of its own, below a shell that gets the block as it stands. Small data, configs with
small settings (a file in the working directory takes precedence over the packaged one) and checkpoints are
there before; see ``docs_world``. Where a small config has fewer epochs, the number in the name of its last
checkpoint is changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import ROOT, Block, blocks_of, pages
from docs_server import CommandServer
from docs_world import World

pytestmark = pytest.mark.slow

ALLOWED = {"doctor": (0, 1), "overfit": (0, 1)}
"""command -> exit codes that are no error: what doctor finds on this machine, figures of a few iterations"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with CommandServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def runs(block: Block) -> bool:
    return block.language in ("bash", "python") and not block.marker


def run_block(block: Block, world: World) -> str:
    """Run a block in the working directory of its page; returns what it printed."""
    text = block.text
    if block.file:
        (world.folder / block.file).parent.mkdir(exist_ok=True)
        (world.folder / block.file).write_text(text)
        return ""
    if block.language == "python":
        (world.folder / "block.py").write_text(text)
        text = f"python -c \"import docs_names; docs_names.run('block.py', '{Path(block.page).stem}')\""
    printed = world.run(text)
    done = world.server.done()
    for command in done:
        words = command["words"]
        assert command["code"] in ALLOWED.get(words[1], (0,)), f"{block}: {words}\n{printed[-3000:]}"
    assert done, f"{block} ran no command\n{printed}"
    assert "command not found" not in printed and "syntax error" not in printed, printed
    return printed


def run_page(page: Path, world: World) -> dict[Block, str]:
    """Run all blocks of a page; returns what each printed."""
    world.server.done()
    return {block: run_block(block, world) for block in blocks_of(page) if block.file or runs(block)}


YOUR_DATA = ROOT / "docs/your_data.md"
PAGES = [page for page in pages() if page != YOUR_DATA and any(map(runs, blocks_of(page)))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).with_suffix("").as_posix())
def test_the_blocks_of_a_page_run_as_printed(page: Path, server: CommandServer, tmp_path: Path) -> None:
    run_page(page, World(page, tmp_path, server))


def test_your_data_leads_from_a_folder_to_a_frozen_and_evaluated_model(
    server: CommandServer, tmp_path: Path
) -> None:
    printed = run_page(YOUR_DATA, World(YOUR_DATA, tmp_path, server))
    text = "".join(block.text for block in printed)
    assert text.count("pcdet-freeze train") == 3
    (compared,) = (out for block, out in printed.items() if "pcdet-freeze digest" in block.text)
    for output in ("dense_head", "pred_boxes", "pred_scores", "pred_labels"):
        found = {line.split()[1] for line in compared.splitlines() if line.startswith(f"{output} ")}
        assert len(found) == 1, output
    scores = json.loads(
        next((tmp_path / "output/my_models/stage3_lane/default").glob("eval/**/result.json")).read_text()
    )
    expected = {"Car_3d/moderate_R40", "Pedestrian_3d/moderate_R40", "segmentation/mIoU", "lane/F1"}
    assert expected <= scores.keys() and list((tmp_path / "output/demo").glob("*.png"))
    assert any("frames: 3 train" in out for out in printed.values())
