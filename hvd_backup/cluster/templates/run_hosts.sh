#!/bin/bash
# hvd_backup on one host or several, without a batch system.
# Change what is below "edit", then: bash run_hosts.sh
set -euo pipefail

# edit: host:ranks,host:ranks. The first host is the one this runs on; it must reach the others by
# ssh without a password.
hosts=localhost:5
# edit: b, the ranks that a round does not wait for
backup_workers=1
# edit: the script
train=(python train.py)
# edit: where hvd_backup is installed, at the same path on every host
if [ -f .venv/bin/activate ]; then
  source .venv/bin/activate
fi
# edit: threads of each rank; ranks x threads should not exceed a host's cores
export OMP_NUM_THREADS=1

ranks=0
for host in ${hosts//,/ }; do
  ranks=$((ranks + ${host##*:}))
  name=${host%%:*}
  if [ "$name" != localhost ] && [ "$name" != "$(hostname)" ]; then
    ssh -o BatchMode=yes -o ConnectTimeout=10 "$name" true ||
      { echo "cannot reach $name by ssh without a password" >&2; exit 1; }
  fi
done

# It finds out which kind of mpirun is here and prints the command; -x NAME passes more variables on.
launch=(hvd-backup run -np "$ranks" -b "$backup_workers" -H "$hosts" -x PATH)

# Ends here if something makes hvd_backup unusable.
"${launch[@]}" -- hvd-backup doctor
"${launch[@]}" -- "${train[@]}"
