"""What a user would do today without ckptlin, one program a file, each run in a process of its own.

They are written as such scripts are: short, with the usual libraries, and without tricks.  `benchmarks.compare`
runs them beside ckptlin; tests hold their results against ckptlin's.
"""
