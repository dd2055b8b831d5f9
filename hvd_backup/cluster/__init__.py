"""Starting hvd_backup on a machine or a cluster: `hvd-backup doctor`, `run` and `template`."""
