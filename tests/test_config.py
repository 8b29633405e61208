"""Configs: bases from anywhere, faults with file and line, --set as users write it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file, locate, plain, where
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing.plan import DEFAULTS


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def model_yaml(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "m.yaml",
        "CLASS_NAMES: [Car]\nMODEL:\n  NAME: PointPillar\n  VFE: {NAME: PillarVFE}\n"
        "OPTIMIZATION:\n  LR: 0.003\n  NUM_EPOCHS: 2\n  MOMS: [0.95, 0.85]\n",
    )


def test_values_are_reached_as_attributes(model_yaml: Path) -> None:
    assert cfg_from_yaml_file(model_yaml).MODEL.VFE.NAME == "PillarVFE"


@pytest.mark.parametrize("base_at", ["cfgs/x/base.yaml", "cfgs/dataset_configs/base.yaml"])
def test_base_config_is_found_beside_the_file_and_in_the_config_root(
    tmp_path: Path, base_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, base_at, "DATASET: A\nDATA_PATH: p\nNESTED: {A: 1, B: 2}\n")
    asked = "base.yaml" if "x/" in base_at else base_at
    path = write(tmp_path, "cfgs/x/m.yaml", f"DATA_CONFIG:\n  _BASE_CONFIG_: {asked}\n  NESTED: {{B: 3}}\n")
    monkeypatch.chdir("/")
    assert cfg_from_yaml_file(path).DATA_CONFIG == {
        "DATASET": "A",
        "DATA_PATH": "p",
        "NESTED": {"A": 1, "B": 3},
    }


def test_base_config_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "work", "base.yaml", "DATASET: A\n")
    path = write(tmp_path / "elsewhere", "m.yaml", "DATA_CONFIG: {_BASE_CONFIG_: base.yaml}\n")
    monkeypatch.chdir(tmp_path / "work")
    assert cfg_from_yaml_file(path).DATA_CONFIG.DATASET == "A"


def test_data_in_the_layout_of_openpcdet_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "data/kitti/x", "")
    path = write(tmp_path, "tools/cfgs/kitti_models/m.yaml", "DATA_CONFIG: {DATA_PATH: ../data/kitti}\n")
    monkeypatch.chdir("/")
    assert str((tmp_path / "data/kitti").resolve()) == cfg_from_yaml_file(path).DATA_CONFIG.DATA_PATH
    monkeypatch.chdir(tmp_path / "tools")
    assert cfg_from_yaml_file(path).DATA_CONFIG.DATA_PATH == "../data/kitti"


def test_a_data_path_that_does_not_exist_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "cfgs/m.yaml", "DATASET: A\nDATA_PATH: ../data/nowhere\n")
    assert cfg_from_yaml_file(path).DATA_PATH == "../data/nowhere"


def test_a_missing_base_names_the_line_and_every_place_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path, "cfgs/m.yaml", "MODEL: {}\nDATA_CONFIG:\n  _BASE_CONFIG_: no.yaml\n")
    with pytest.raises(ConfigError, match=r"m\.yaml, line 3: _BASE_CONFIG_ no\.yaml was not found"):
        cfg_from_yaml_file(path)


def test_a_cycle_of_bases_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "MODEL: {_BASE_CONFIG_: a.yaml}\n")
    with pytest.raises(ConfigError, match="form a cycle"):
        cfg_from_yaml_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  A: 1\n  A: 2\n", r"line 3: key MODEL\.A is a duplicate of line 2"),
        ("OPTIMIZATION:\n  LR: fast\n", r"line 2: OPTIMIZATION\.LR must be a number above 0; got 'fast'"),
        (
            "CLASS_NAMES: Car\n",
            r"line 1: CLASS_NAMES must be a list of class names.*; got str 'Car': write \[Car\]",
        ),
        ("MODEL: [1\n", r"line 2: not valid YAML"),
        ("MODEL: {A: [b.[01]]}\n", r"line 1: not valid YAML.*hold"),
        ("- 1\n", "a config is a mapping"),
        ("MODLE: {}\n", r"line 1: MODLE is not a key of a config.*did you mean MODEL\?"),
        ("NOT_TRAIN_IN_MULTI_TASK: [vfe]\n", "belongs under MODEL"),
        ("MODEL: {A: !x {}}\n", "unknown tag"),
        ("MODEL: 3\n", r"line 1: MODEL must be a section"),
    ],
)
def test_a_fault_names_file_line_and_rule(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cfg_from_yaml_file(write(tmp_path, "m.yaml", text))
    assert "m.yaml" in str(caught.value)


def test_all_type_faults_come_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", "OPTIMIZATION: {LR: a, NUM_EPOCHS: 0, MOMS: [1]}\n")
    with pytest.raises(ConfigError) as caught:
        cfg_from_yaml_file(path)
    assert str(caught.value).count("m.yaml, line 1: OPTIMIZATION.") == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*no\.yaml"):
        cfg_from_yaml_file(tmp_path / "no.yaml")


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert (
        cfg_from_yaml_file(write(tmp_path, "m.yaml", "OPTIMIZATION: {LR: 1e-3}\n")).OPTIMIZATION.LR == 0.001
    )


def test_gradients_need_not_be_clipped(tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", "OPTIMIZATION: {GRAD_NORM_CLIP: null}\n")
    assert cfg_from_yaml_file(path).OPTIMIZATION.GRAD_NORM_CLIP is None


def test_n1_an_exemption_needs_no_quotes_in_a_block_list(tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", "MODEL:\n  NOT_TRAIN_IN_MULTI_TASK:\n  - vfe\n  - !vfe.norm\n")
    assert cfg_from_yaml_file(path).MODEL.NOT_TRAIN_IN_MULTI_TASK == ["vfe", "!vfe.norm"]


@pytest.mark.parametrize(
    "text", ["[vfe, backbone_2d.blocks]", "vfe,backbone_2d.blocks", '["vfe", "backbone_2d.blocks"]']
)
def test_n6_the_freeze_list_is_taken_from_the_command_line_in_both_forms(model_yaml: Path, text: str) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(["MODEL.NOT_TRAIN_IN_MULTI_TASK", text], cfg)
    assert cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK == ["vfe", "backbone_2d.blocks"]


def test_n6_a_single_name_and_an_exemption_on_the_command_line_make_a_list(model_yaml: Path) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(
        ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, !vfe.pfn_layers.0]", "MODEL.FREEZE.EVAL", "vfe"], cfg
    )
    assert cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK == ["vfe", "!vfe.pfn_layers.0"]
    assert cfg.MODEL.FREEZE.EVAL == ["vfe"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[vfe,]", ["vfe"]),
        ("vfe, ", ["vfe"]),
        ("[backbone_2d.blocks.[0-2], vfe]", ["backbone_2d.blocks.[0-2]", "vfe"]),
        ("*", ["*"]),
        ("!vfe.norm", ["!vfe.norm"]),
        ("{vfe: 1}", {"vfe": 1}),
        ("3", 3),
        ("(vfe, head)", "(vfe, head)"),
        ("[vfe, 3]", ["vfe", 3]),
    ],
)
def test_n3_n6_a_value_that_is_not_a_name_is_kept_for_the_error_message(
    model_yaml: Path, text: str, names: object
) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(["MODEL.NOT_TRAIN_IN_MULTI_TASK", text], cfg)
    assert names == cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK


def test_every_key_of_the_freeze_block_can_be_set(model_yaml: Path) -> None:
    for key, default in DEFAULTS.items():
        cfg = cfg_from_yaml_file(model_yaml)
        cfg_from_list([f"MODEL.FREEZE.{key}", str(plain(default))], cfg)
        assert plain(cfg.MODEL.FREEZE[key]) == plain(default), key


@pytest.mark.parametrize("text", ["[]", "null", ""])
def test_n6_the_list_can_be_emptied_on_the_command_line(model_yaml: Path, text: str) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(["MODEL.NOT_TRAIN_IN_MULTI_TASK", text], cfg)
    assert not cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK


def test_loss_weights_can_be_added_to_a_config_without_them(model_yaml: Path) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(["MODEL.LOSS_WEIGHTS", "{dense_head: 0}", "MODEL.LEARN_LOSS_WEIGHTS", "True"], cfg)
    assert cfg.MODEL.LOSS_WEIGHTS == {"dense_head": 0} and cfg.MODEL.LEARN_LOSS_WEIGHTS is True


def test_set_keeps_types_and_reaches_into_lists(model_yaml: Path) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(["OPTIMIZATION.LR", "1", "OPTIMIZATION.MOMS", "0.9,0.8", "OPTIMIZATION.MOMS.0", "0.5"], cfg)
    assert cfg.OPTIMIZATION.LR == 1.0 and isinstance(cfg.OPTIMIZATION.LR, float)
    assert cfg.OPTIMIZATION.MOMS == [0.5, 0.8]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["OPTIMIZATION.LR", "1", "--fix_random_seed"], "--fix_random_seed follows it. Put --set last"),
        (["OPTIMIZATION.LRR", "1"], r"no such key 'LRR'; did you mean LR\?"),
        (["OPTIMIZATION.LR"], "pairs KEY VALUE"),
        (["OPTIMIZATION.NUM_EPOCHS", "many"], "must be int like 2; got 'many'"),
        (["MODEL.VFE", "3"], "must be EasyDict|must be"),
        (["MODEL.FREEZ.EVAL", "vfe"], r"no such key 'FREEZ'; did you mean FREEZE\?"),
        (["MODEL.FREEZE.CACHE.FOLDR", "a"], r"no such key 'FOLDR'; did you mean FOLDER\?"),
        (["MODEL.FREEZE.SCHEDUL", "[]"], r"no such key 'SCHEDUL'; did you mean SCHEDULE\?"),
        (["MODEL.FREEZE.parameters", "False"], r"did you mean PARAMETERS\?"),
        (["MODEL.NOT_TRAIN_IN_MULTITASK", "vfe"], r"did you mean NOT_TRAIN_IN_MULTI_TASK\?"),
        (["OPTIMIZATION.MOMS.7", "1"], r"known: 0\.\.1"),
        (["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe,", "dense_head]"], r'--set KEY "\[a, b\]"'),
    ],
)
def test_set_refuses_what_has_no_effect(model_yaml: Path, items: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfg_from_list(items, cfg_from_yaml_file(model_yaml))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("DATA_PATH", "DATA_CONFIG.DATA_PATH"),
        ("LR", "OPTIMIZATION.LR"),
        ("NOT_TRAIN_IN_MULTI_TASK", "MODEL.NOT_TRAIN_IN_MULTI_TASK"),
    ],
)
def test_set_names_the_section_of_a_key_that_lacks_it(key: str, meant: str) -> None:
    cfg = cfg_from_yaml_file("kitti_models/pointpillar.yaml")
    with pytest.raises(ConfigError, match=rf"no such key '{key}'; did you mean {meant}\?"):
        cfg_from_list([key, "1"], cfg)


def test_set_names_the_key_of_a_data_config_without_its_section() -> None:
    cfg = cfg_from_yaml_file("dataset_configs/kitti_dataset.yaml")
    with pytest.raises(ConfigError, match=r"did you mean DATA_PATH\?"):
        cfg_from_list(["DATA_CONFIG.DATA_PATH", "/data"], cfg)


def test_every_optional_key_of_optimization_and_of_a_cache_can_be_added(model_yaml: Path) -> None:
    cfg = cfg_from_yaml_file(model_yaml)
    cfg_from_list(["OPTIMIZATION.USE_AMP", "True", "MODEL.FREEZE.CACHE.FOLDER", "a"], cfg)
    assert cfg.OPTIMIZATION.USE_AMP is True and cfg.MODEL.FREEZE.CACHE == {"FOLDER": "a"}


def test_where_follows_a_key_to_its_file_and_line_and_survives_a_copy(model_yaml: Path) -> None:
    cfg = copy.deepcopy(cfg_from_yaml_file(model_yaml))
    assert where(cfg, "MODEL.VFE.NAME").endswith("m.yaml, line 4")
    assert where(cfg, "MODEL.VFE.NEW").endswith("m.yaml, line 4")
    assert locate(cfg, "MODEL.VFE.NAME must be known").endswith("m.yaml, line 4)")
    assert locate(cfg, "VFE.NAME must be known").endswith("m.yaml, line 4)")
    assert locate(cfg, "FOO must be known") == "FOO must be known"


def test_plain_holds_dicts_and_lists_only(model_yaml: Path) -> None:
    value = plain(cfg_from_yaml_file(model_yaml))
    assert type(value) is dict and type(value["MODEL"]) is dict
