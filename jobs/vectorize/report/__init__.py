"""What people see of a DataSet: the report page, `inspect`, verification."""
