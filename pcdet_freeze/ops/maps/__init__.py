"""BEV maps in the channels-last format: layout, norm statistics, matrix products."""
