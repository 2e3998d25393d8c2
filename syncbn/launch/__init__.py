"""What a process is part of: which run, which rank of how many, and where to go on from. Imports no torch by itself."""
