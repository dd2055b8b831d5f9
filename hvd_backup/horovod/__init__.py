"""Parts of Horovod's interface and environment that are the same for every framework."""
