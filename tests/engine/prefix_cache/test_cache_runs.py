"""F7 in a training: what is read from the cache is what was written, and nothing else changes."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cache_runs import BLOCKS, cache_of, cfg_with, keep, run, trainer_of
from engine_toy import assert_same_state

from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.prefix_cache.lookahead import Lookahead
from pcdet_freeze.engine.prefix_cache.store import Store
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import ConfigError, FreezeError
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


class Watch(Hook):
    """Which iterations computed the cached part; a hook inside a block would change how that block runs."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self._ran = False

    def before_train(self, trainer: Trainer) -> None:
        scatter = trainer.model.map_to_bev_module
        own = scatter.forward

        def watched(batch: Any) -> Any:
            self._ran = True
            return own(batch)

        scatter.forward = watched

    def after_step(self, trainer: Trainer) -> None:
        self.computed += [trainer.iteration] if self._ran else []
        self._ran = False


def folders(path: Path) -> list[Path]:
    return sorted(path.iterdir())


def test_f7_a_run_with_a_full_cache_is_the_run_that_filled_it_and_the_run_without_one(tmp_path: Path) -> None:
    plain = run(trainer_of(cfg_with(None), draws=2))
    filling = run(trainer_of(cfg_with(keep(tmp_path))))
    reading = run(trainer_of(cfg_with(keep(tmp_path))))
    assert_same_state(filling, reading)
    assert_same_state(plain, filling)


def test_f7_a_sample_that_came_before_is_not_computed_again(tmp_path: Path) -> None:
    filling, reading = Watch(), Watch()
    run(trainer_of(cfg_with(keep(tmp_path, 1)), [filling]))
    run(trainer_of(cfg_with(keep(tmp_path, 1)), [reading]))
    assert filling.computed == [1, 2, 3]  # the first epoch of three
    assert reading.computed == [1]  # the first step of a process is computed and compared


def test_f7_variants_are_drawn_in_turns_and_each_has_a_row_of_its_own(tmp_path: Path) -> None:
    watch = Watch()
    trainer = trainer_of(cfg_with(keep(tmp_path, 2)), [watch], epochs=4)
    run(trainer)
    store = cache_of(trainer).store
    assert store is not None and store.rows == store.filled == 12
    assert watch.computed == [1, 2, 3, 4, 5, 6]


def test_f7_every_row_holds_what_the_prefix_gives_for_its_sample(tmp_path: Path) -> None:
    trainer = trainer_of(cfg_with(keep(tmp_path, 2)), epochs=2)
    run(trainer)
    data, store, seen = trainer.loader.dataset, cache_of(trainer).store, []
    trainer.model.backbone_2d.blocks[2].register_forward_hook(lambda m, a, out: seen.append(out))
    assert store is not None
    for epoch in (0, 1):
        data.set_epoch(epoch)
        for index in range(6):
            batch = data.collate_batch([data[index]])
            trainer.move(batch, torch.device("cpu"))
            trainer.model.eval()(batch)
            (kept,) = store.read(store.slots[-1], [index * 2 + epoch], torch.device("cpu"))
            torch.testing.assert_close(kept, seen[-1][0], rtol=1e-4, atol=1e-5)
    assert len({tensor.numpy().tobytes() for tensor in seen}) == 12


def test_f7_a_run_that_was_broken_off_goes_on_to_the_bit(tmp_path: Path) -> None:
    cfg = cfg_with(keep(tmp_path / "a"))
    whole = run(trainer_of(cfg_with(keep(tmp_path / "b"))))
    first = trainer_of(cfg, [CheckpointHook(tmp_path / "ckpt")], max_iters=4)
    run(first)
    file = load_checkpoint(next((tmp_path / "ckpt").glob("*.pth")))
    second = trainer_of(cfg, seed=3)
    load_model_state(second.model, file["model_state"], "a")
    resume(second, file)
    assert_same_state(whole, run(second))
    assert len(folders(tmp_path / "a")) == 1


def overwrite(store: Store, value: float) -> None:
    """Give all rows this value."""
    for row in range(store.rows):
        source = int(store._marks[row, 0]) - 1
        assert store.begin(row)
        for slot in store.slots:
            store.write(slot, row, torch.full(slot.shape, value))
        store.mark(row, source)


class Poisons(Hook):
    """After the first epoch every stored value is another one, and an evaluation follows each step."""

    def __init__(self, batch: Any) -> None:
        self.batch, self.found = batch, []

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == 3:
            store = cache_of(trainer).store
            assert store is not None
            overwrite(store, 3.0)
        with torch.no_grad():
            trainer.model.eval()(batch := copy.deepcopy(self.batch))
        self.found.append(trainer.model.backbone_2d.blocks[0](batch["spatial_features"]))


def test_f7_an_evaluation_never_reads_the_cache(tmp_path: Path) -> None:
    trainer = trainer_of(cfg_with(keep(tmp_path, 1)))
    data = trainer.loader.dataset
    data.keep_variants(1)
    batch = data.collate_batch([data[0], data[1]])
    trainer.move(batch, torch.device("cpu"))
    watch = Poisons(batch)
    trainer.hooks.insert(0, watch)
    run(trainer)
    assert len(watch.found) == 9 and all(torch.equal(watch.found[0], value) for value in watch.found)


def test_f7_random_draws_are_refused_until_a_number_of_variants_is_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shuffle_points are random.*VARIANTS: 4"):
        run(trainer_of(cfg_with(str(tmp_path))))
    assert folders(tmp_path) == []


def test_f7_data_without_random_draws_needs_no_number_of_variants(tmp_path: Path) -> None:
    cfg = cfg_with(str(tmp_path))
    cfg.DATA_CONFIG.DATA_PROCESSOR[1].SHUFFLE_ENABLED.train = False
    trainer = trainer_of(cfg)
    run(trainer)
    store = cache_of(trainer).store
    assert store is not None and store.rows == store.filled == 6


def test_f7_the_size_is_stated_first_and_what_is_there_already(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    run(trainer_of(cfg_with(keep(tmp_path))))
    run(trainer := trainer_of(cfg_with(keep(tmp_path)), epochs=1))
    names = ", ".join(f"backbone_2d.blocks.{level}" for level in range(3))
    size = 4 * 8 * (16 * 16 + 8 * 8 + 4 * 4)
    raw = f"Cache of {names}: {size / 1e3:.3g} kB a sample (float32), compressed "
    assert caplog.text.count(raw) == 2
    sizes = r"compressed [\d.]+ kB \(zstd; [\d.]+ kB to [\d.]+ kB in (\d) samples\)"
    total = r" x 6 samples x 2 variants = about [\d.]+ kB in .* \([\d.]+ GB free\)"
    assert re.findall(sizes + total, caplog.text) == ["8", "2"]  # a folder that is there is not sampled again
    store, stated = cache_of(trainer).store, re.findall(r"= about ([\d.]+) kB", caplog.text)[0]
    assert store is not None and abs(float(stated) * 1e3 - store.used) < 0.1 * store.used
    assert store.used < 0.7 * store.rows * sum(store.row_bytes)
    assert "0 of 12 samples are cached already" in caplog.text
    assert "12 of 12 samples are cached already" in caplog.text


def test_f7_compression_changes_no_bit_and_an_uncompressed_folder_is_continued_as_it_is(
    tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    compressed = run(trainer_of(cfg_with(keep(tmp_path / "zstd")), epochs=2))
    first = run(trainer_of(cfg_with(keep(tmp_path / "none", COMPRESS="none")), epochs=2))
    watch = Watch()
    assert_same_state(run(trainer_of(cfg_with(keep(tmp_path / "none")), [watch], epochs=2)), first)
    assert_same_state(first, compressed)
    assert watch.computed == [1] and len(folders(tmp_path / "none")) == 1
    assert "stored with COMPRESS: none and stays so" in caplog.text


def test_f7_with_a_limit_the_samples_that_fit_are_cached_and_the_others_computed(
    tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    plain = run(trainer_of(cfg_with(None), draws=2, epochs=4))
    cfg = cfg_with(keep(tmp_path, LIMIT="0.05MB"))
    filling, watch = trainer_of(cfg, epochs=4), Watch()
    assert_same_state(run(filling), plain)
    assert_same_state(run(trainer_of(cfg, [watch], epochs=4)), plain)
    store = cache_of(filling).store
    assert store is not None and 25_000 < store.used <= 50_000 and 0 < store.filled < 12
    assert 1 < len(watch.computed) < 12
    assert re.search(r"LIMIT: about \d\d% of the samples fit; the others are computed", caplog.text)


def test_f7_a_cache_that_does_not_fit_ends_the_run_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=40_000))
    trainer = trainer_of(cfg_with(keep(tmp_path)))
    with pytest.raises(
        FreezeError, match=r"The cache must fit on the disk, but it needs [\d.]+ kB and .* has 38 kB free"
    ):
        run(trainer)
    assert trainer.iteration == 0 and folders(tmp_path) == []
    run(trainer_of(cfg_with(keep(tmp_path, LIMIT="0.03MB")), epochs=1))


def test_f7_a_disk_that_another_program_fills_is_logged_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class FillsTheDisk(Hook):
        def after_step(self, trainer: Trainer) -> None:
            monkeypatch.setattr(os, "pwrite", full)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    caplog.set_level(logging.INFO)
    trainer = trainer_of(cfg_with(keep(tmp_path)), [FillsTheDisk()])
    assert_same_state(run(trainer), run(trainer_of(cfg_with(None), draws=2)))
    assert caplog.text.count("The cache takes no more samples; the others are computed.") == 1
    store = cache_of(trainer).store
    assert store is not None and store.filled == 2


@pytest.mark.parametrize("limit", ["80", 80, "GB", "-1GB", "0.5XB"])
def test_f7_a_limit_that_is_not_a_size_is_an_error_with_an_example(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(FreezeError, match=r"CACHE.LIMIT must be .*a size such as 80GB"):
        trainer_of(cfg_with(keep(tmp_path, LIMIT=limit)))


def test_f7_another_frozen_state_is_another_cache_and_the_log_says_what_differs(
    tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    run(trainer_of(cfg_with(keep(tmp_path))))
    (first,) = folders(tmp_path)
    before = (first / "0.bin").read_bytes()
    run(trainer_of(cfg_with(keep(tmp_path)), seed=5))
    assert len(folders(tmp_path)) == 2 and (first / "0.bin").read_bytes() == before
    assert f"a new cache: it differs from the nearest one in {tmp_path} in frozen state" in caplog.text


def test_f7_a_state_that_is_loaded_between_two_steps_is_another_cache(tmp_path: Path) -> None:
    class Loads(Hook):
        def before_epoch(self, trainer: Trainer) -> None:
            if trainer.epoch == 1:
                trainer.model.vfe.load_state_dict(
                    {k: v * 1.5 for k, v in trainer.model.vfe.state_dict().items()}
                )

    trainer = trainer_of(cfg_with(keep(tmp_path, 1)), [Loads()], epochs=2)
    trainer.hooks = [hook for hook in trainer.hooks if type(hook).__name__ in ("Loads", "FrozenPrefixHook")]
    run(trainer)
    assert len(folders(tmp_path)) == 2


def test_f7_a_bf16_cache_is_reported_as_approximate_and_gives_the_same_values_each_time(
    tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    cfg = cfg_with(keep(tmp_path, DTYPE="bfloat16"))
    filling, reading = run(trainer_of(cfg)), run(trainer_of(cfg))
    assert_same_state(filling, reading)
    assert "approximate: stored in bfloat16 with a relative error (L2) of 1." in caplog.text
    assert "kB a sample (bfloat16), compressed" in caplog.text
    exact = run(trainer_of(cfg_with(keep(tmp_path))))
    assert any(not torch.equal(exact[name], filling[name]) for name in exact)


def test_f7_a_row_that_is_not_what_the_prefix_gives_stops_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(cfg_with(keep(tmp_path, 1)))
    run(trainer)
    store = cache_of(trainer).store
    assert store is not None
    overwrite(store, 1.0)
    with pytest.raises(FreezeError, match=r"row \d of backbone_2d.blocks.0 in .* relative error .*Delete"):
        run(trainer_of(cfg_with(keep(tmp_path, 1))))


def test_f7_rows_of_points_that_have_changed_are_computed_anew(tmp_path: Path) -> None:
    run(trainer_of(cfg_with(keep(tmp_path, 1))))
    watch = Watch()
    trainer = trainer_of(cfg_with(keep(tmp_path, 1)), [watch], epochs=2)
    load = trainer.loader.dataset.load_sample
    trainer.loader.dataset.load_sample = lambda index: load((index + 1) % 6)
    run(trainer)
    assert watch.computed == [1, 2, 3]
    other = trainer_of(cfg_with(None), draws=1, epochs=2)
    other.loader.dataset.load_sample = lambda index: load((index + 1) % 6)
    assert_same_state(trainer.model.state_dict(), run(other))


def test_f7_a_schedule_goes_on_with_a_cache_of_what_stays_frozen(tmp_path: Path) -> None:
    phases = [{"EPOCH": 1, "TRAIN": ["backbone_2d.blocks"]}, {"EPOCH": 2, "TRAIN": ["vfe"]}]
    trainer = trainer_of(cfg_with(keep(tmp_path, 1), SCHEDULE=phases))
    plain = trainer_of(cfg_with(None, SCHEDULE=phases), draws=1)
    assert_same_state(run(trainer), run(plain))
    outputs = {json.loads((path / "cache.json").read_text())["outputs"][0][0] for path in folders(tmp_path)}
    assert outputs == {"backbone_2d.blocks.0", "map_to_bev_module"}
    assert cache_of(trainer).store is None


def test_f7_a_later_phase_whose_cache_has_no_room_goes_on_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class FillsTheDisk(Hook):
        def after_epoch(self, trainer: Trainer) -> None:
            monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))

    caplog.set_level(logging.INFO)
    cfg = cfg_with(keep(tmp_path, 1), SCHEDULE=[{"EPOCH": 1, "TRAIN": ["backbone_2d.blocks"]}])
    trainer = trainer_of(cfg, [FillsTheDisk()], epochs=2)
    run(trainer)
    assert "continues without the cache. The cache must fit on the disk" in caplog.text
    assert trainer.iteration == 6 and cache_of(trainer).store is None


def test_f7_outputs_without_a_row_for_each_sample_are_refused_by_name(tmp_path: Path) -> None:
    def reads_pillars(head: Any, args: Any) -> None:
        batch = args[0]
        batch["spatial_features_2d"] = batch["spatial_features_2d"] + batch["pillar_features"].mean()

    trainer = trainer_of(cfg_with(keep(tmp_path)))
    trainer.model.dense_head.register_forward_pre_hook(reads_pillars)
    with pytest.raises(FreezeError, match=r"vfe: pillar_features has shape \(\d+, 64\), not a row"):
        run(trainer)
    assert folders(tmp_path) == []


def test_f7_the_samples_that_are_prefetched_are_those_of_the_next_batch(tmp_path: Path) -> None:
    trainer, lookahead, predicted, seen = trainer_of(cfg_with(keep(tmp_path))), Lookahead(), [], []

    for epoch, offset in ((0, 0), (1, 0), (2, 1)):  # the last one is resumed in its middle
        trainer.epoch, trainer.offset = epoch, offset
        trainer.loader.dataset.keep_variants(2)
        trainer.sampler.set_epoch(epoch, offset)
        for batch in trainer.loader:
            seen.append([int(row) // 2 for row in batch["cache_entry"][:, 0]])
            predicted.append(list(lookahead.after(trainer)))
            trainer.offset += 1
    ends = [2, 5, 7]
    assert all(predicted[place] == [] for place in ends) and len(seen) == 8
    assert all(predicted[place] == seen[place + 1] for place in range(7) if place not in ends)


def test_f7_nothing_of_a_cached_forward_stays_on_the_model(tmp_path: Path) -> None:
    trainer = trainer_of(cfg_with(keep(tmp_path)), epochs=1)
    run(trainer)
    assert not any("forward" in module.__dict__ for module in trainer.model.modules())
    assert CachedForward.__name__ not in repr(trainer.model)


def test_f7_a_data_set_that_cannot_name_its_samples_is_an_error(tmp_path: Path) -> None:
    trainer = trainer_of(cfg_with(keep(tmp_path)))
    trainer.loader = [1]
    with pytest.raises(FreezeError, match="needs a data set that identifies its samples"):
        trainer.run()


def test_f7_with_nothing_in_the_prefix_the_log_says_that_nothing_is_kept(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    run(trainer_of(cfg_with(keep(tmp_path), BLOCKS[1]), epochs=1))
    assert "FREEZE.CACHE has nothing to keep: there is no frozen prefix." in caplog.text
