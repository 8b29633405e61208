"""Small tools without knowledge of freezing: processes, random state, tensors, pickles."""
