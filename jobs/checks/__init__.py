"""What a new version of a DataSet must satisfy, and how it is published: the candidate, its checks, the publication."""
