"""The ETL: images of any source layout become a published DataSet."""
