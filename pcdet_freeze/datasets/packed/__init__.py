"""Long lists of infos and database entries, packed in one file that all ranks and workers share.

A list of a hundred thousand dicts takes minutes of start-up and gigabytes in each process: touching a Python
object writes its reference count, so that forked workers copy the list page by page. Here each entry is a
record of one file with offsets; a process reads the records that it needs, through the page cache of the
system. OpenPCDet's ``.pkl`` stays the format of exchange; the packed file lies beside it and is derived.

    kinds      what a list holds: its entries, and columns that are read without the entries
    format     the file: records, index, footer; is it whole, is it up to date
    rows       the list as a data set sees it, from a packed file or from memory
    packing    ``.pkl`` -> packed file; runs in a process of its own (``child``)
    opening    find the packed file, or have it made once, while other processes wait
"""

from pcdet_freeze.datasets.packed.kinds import INFOS, Kind, frame_of
from pcdet_freeze.datasets.packed.opening import open_list, packed_file, read_infos
from pcdet_freeze.datasets.packed.rows import Rows

__all__ = ["INFOS", "Kind", "Rows", "frame_of", "open_list", "packed_file", "read_infos"]
