"""Files on disk: info files, point files of several formats, tables."""
