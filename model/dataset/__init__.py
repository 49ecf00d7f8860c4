"""A DataSet on disk and in epochs: manifest, shards, sampler, loader."""
