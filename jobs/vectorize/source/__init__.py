"""How images are listed and read: folders, tables, IDX files."""
