"""Whether frozen tensors are what they were: digests, certificates, metadata of checkpoints."""
