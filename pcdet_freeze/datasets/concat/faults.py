"""What is wrong with the config of a joined set, as far as no file must be read."""

from __future__ import annotations

from collections.abc import Iterator

from pcdet_freeze.datasets.concat.member import member_config, point_class_of
from pcdet_freeze.datasets.concat.settings import ConcatSettings, MemberSettings
from pcdet_freeze.datasets.labels.label_settings import IGNORED
from pcdet_freeze.datasets.loader import data_faults, label_forms_of
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.template import LabelForms
from pcdet_freeze.utils.settings.names import did_you_mean

WHERE = "DATA_CONFIG"


def joined_faults(settings: ConcatSettings, joined: Config) -> list[str]:
    """Every fault of the sets' own configs; without one, what does not fit together."""
    found: list[str] = []
    for name, member in settings.datasets.items():
        where = f"{WHERE}.DATASETS.{name}.DATA_CONFIG"
        if "DATASETS" in member.data_config:
            found.append(f"{where}.DATASET must not be a joined set: list its sets in {WHERE}.DATASETS")
            continue
        faults = data_faults(member_config(member, joined))
        found += [f"{where}{fault.removeprefix(WHERE)}" for fault in faults]
    if found:
        return found
    for name, member in settings.datasets.items():
        found += _column_faults(name, member, settings)
    return [*found, *_form_faults(settings, joined)]


def _column_faults(name: str, member: MemberSettings, settings: ConcatSettings) -> Iterator[str]:
    """Columns that the set's points lack."""
    own = list(member.data_config["POINT_FEATURE_ENCODING"]["src_feature_list"])
    wanted = list(settings.point_feature_encoding.src_feature_list)
    where = f"{WHERE}.DATASETS.{name}.FILL"
    for column in (column for column in wanted if column not in own and column not in member.fill):
        yield (
            f"{where}.{column} is required: the points of {name} have the columns {', '.join(own)}, but "
            f"POINT_FEATURE_ENCODING.src_feature_list of the joined set asks for {column}. State the value "
            f"that they get (FILL: {{{column}: 0.0}}), or leave the column out"
        )
    for column in (column for column in member.fill if column not in wanted[3:]):
        yield (
            f"{where}.{column} must be a column beyond x, y, z of the joined set "
            f"({', '.join(wanted[3:]) or 'none'}); got {column!r}{did_you_mean(column, wanted[3:])}"
        )


def forms_of_members(settings: ConcatSettings, joined: Config) -> dict[str, LabelForms]:
    """Point classes, in the names of the joined set, and lane maps of each set, where they are used."""
    return {name: _forms_of(member, joined) for name, member in settings.datasets.items()}


def _forms_of(member: MemberSettings, joined: Config) -> LabelForms:
    own, used = label_forms_of(member_config(member, joined)), member.labels
    names = tuple(point_class_of(name, member.point_class_map) for name in own.semantic_class_names)
    return LabelForms(
        names if used is None or "point_labels" in used else (),
        own.lane_map_shape if used is None or "lane_map" in used else None,
    )


def joined_forms(settings: ConcatSettings, joined: Config) -> LabelForms:
    """Point classes and lane maps of the joined set."""
    forms = list(forms_of_members(settings, joined).values())
    names = dict.fromkeys(name for form in forms for name in form.semantic_class_names)
    given = settings.semantic_classes or tuple(name for name in names if name.lower() != IGNORED)
    shapes = [form.lane_map_shape for form in forms if form.lane_map_shape is not None]
    return LabelForms(given, shapes[0] if shapes else None)


def _form_faults(settings: ConcatSettings, joined: Config) -> Iterator[str]:
    """Point classes that the joined set does not have, lane maps of different sizes."""
    forms, whole = forms_of_members(settings, joined), joined_forms(settings, joined)
    for name, form in forms.items():
        known = (*whole.semantic_class_names, IGNORED)
        for given in (given for given in form.semantic_class_names if given not in known):
            yield (
                f"{WHERE}.DATASETS.{name}.POINT_CLASS_MAP.{given} is required: the points of {name} have the "
                f"class {given!r}, which SEMANTIC_CLASSES ({', '.join(whole.semantic_class_names)}) does not "
                f"list. Map it to one of them, or to {IGNORED}"
            )
    sizes = {name: form.lane_map_shape for name, form in forms.items() if form.lane_map_shape is not None}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {shape[0]} x {shape[1]}" for name, shape in sizes.items())
        yield (
            f"{WHERE}.DATASETS must have lane maps of one size (rows x columns), but they have {listed}. Set "
            "LANE.CELL_SIZE of each set to the same value"
        )
