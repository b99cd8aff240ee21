"""A decoder of the baskets of ROOT's trees, for the common forms of branches.

root_tree.py finds a tree and its baskets, baskets.py decodes them, inflate.py decompresses them.
weaver/read/files.py uses uproot for other files, and also if this decoder raises an error: such a
fault makes reading slower and shows no message.
"""
