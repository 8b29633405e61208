"""What to do with a model of OpenPCDet whose family is not built here."""

PLUGIN = (
    "docs/openpcdet.md lists what is; any model that OpenPCDet itself builds can be frozen there: "
    "python -m pcdet_freeze.openpcdet"
)
