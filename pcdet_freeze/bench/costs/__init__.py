"""What single parts cost: certificates, guards, loading, operators, evaluation, the cache."""
