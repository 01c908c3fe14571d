"""The command line of ckptlin."""
