"""Plugin that freezes modules in an unmodified OpenPCDet; :mod:`pcdet_freeze.openpcdet` is its public API.

``plugin`` lists the functions of OpenPCDet that are replaced, ``replacements`` has what runs in their place,
``session`` follows one frozen model from its building to the end of its training. The folders: ``command``
(the command line), ``patching`` (how functions are replaced), ``model`` (forward and heads of the detector),
``prefix`` (FREEZE.FUSE), ``optimizer``, ``checkpoint``, and ``tasks`` (heads of the user).
"""
