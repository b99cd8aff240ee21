"""Reading ROOT, parquet and HDF5 files from any storage.

files.py finds and checks the files of a data set and chooses the reader of each: for ROOT the
decoder in root/, and uproot for what that one does not support or fails to read; parquet.py;
hdf5.py. All give columns as jagged.py describes them.
"""
