"""Files on any store: local disks, S3, GCS, HDFS; atomic writes and leases."""
