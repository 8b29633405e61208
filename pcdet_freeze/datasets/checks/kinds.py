"""Files of another kind, by their first bytes."""

from __future__ import annotations

# as float32 the first four bytes of each are no coordinate in metres, or enough bytes follow to tell
_MAGIC = {
    b"\x93NUMPY": "an array of np.save (.npy); write it with array.astype('float32').tofile(path)",
    b"# .PCD v": "a PCD file of the Point Cloud Library",
    b"VERSION .7": "a PCD file of the Point Cloud Library",
    b"ply\n": "a PLY file",
    b"ply\r\n": "a PLY file",
    b"LASF": "a LAS or LAZ file",
    b"PK\x03\x04": "a zip archive (.npz, .zip)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"ARROW1\0\0": "a Feather or Arrow table",
    b"PAR1": "a Parquet table",
    b"\xfd7zXZ\0": "compressed by xz",
    b"#ROSBAG V": "a ROS bag",
    b"<!DOCTYPE": "an HTML page: the download failed",
    b"<html": "an HTML page: the download failed",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
}
_GZIP, _BZIP2, _ZSTD = b"\x1f\x8b\x08", b"1AY&SY", b"\x28\xb5\x2f\xfd"
_FLAGS = 0x20
_TEXT = 64


def kind_of(raw: bytes) -> str:
    """What a file that begins with ``raw`` looks like, if it is no raw point file; else an empty string."""
    head = raw[:_TEXT]
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(_GZIP) and len(head) > 3 and head[3] < _FLAGS:  # a coordinate below 1e-19
        return "compressed by gzip: unpack it"
    if head[:3] == b"BZh" and head[4:10] == _BZIP2:
        return "compressed by bzip2: unpack it"
    if head.startswith(_ZSTD):  # the coordinate -1.5e37
        return "compressed by zstd: unpack it"
    # sixteen floats, none of which has a byte beyond printable characters
    if len(head) == _TEXT and head.isascii() and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text file (a table of points?)"
    return ""
