"""Methods: rules that predict a checkpoint from the steps."""
