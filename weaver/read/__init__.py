"""Reading ROOT, parquet and HDF5 files from any storage."""
