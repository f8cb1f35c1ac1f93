#!/usr/bin/env bash
# Trains on a TPU VM slice over ssh, one process a host.
#
#   scripts/launch/tpu_vm.sh setup NAME ZONE REPOSITORY    clone it into ~/mmgen_jax on every host, and install it
#   scripts/launch/tpu_vm.sh start NAME ZONE FLAGS...      train; FLAGS are those of scripts/train.py, without --distributed
#   scripts/launch/tpu_vm.sh watch NAME ZONE               the first host's output as it comes
#   scripts/launch/tpu_vm.sh save  NAME ZONE               save now and go on
#   scripts/launch/tpu_vm.sh stop  NAME ZONE               save and stop
#
#   scripts/launch/tpu_vm.sh start my-tpu us-east5-b --config configs/captioner_scenes.py --workdir /mnt/shared/runs/scenes
#
# The run outlives the ssh connection, and starts again by itself when a host comes back (scripts/launch/again.sh). The workdir
# lies on a disk that all hosts share, such as Filestore. Needs gcloud.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
what=$1 name=$2 zone=$3
shift 3
on() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"; }
signal() { on "$1" "kill -s $2 \$(cat ~/mmgen_jax/train.pid)"; }

case $what in
  setup)
    on all "git clone $(printf %q "${1:?needs the address of the repository}") ~/mmgen_jax \
      && python3 -m venv ~/venv && ~/venv/bin/pip install -q -e \"\$HOME/mmgen_jax[tpu,gcs]\""
    ;;
  start)
    flags=$(printf '%q ' "$@")
    on all "cd ~/mmgen_jax && (setsid nohup bash -c 'echo \$\$ > train.pid; exec \"\$@\"' - \
      scripts/launch/again.sh ~/venv/bin/python -u scripts/train.py --distributed $flags \
      >> train.log 2>&1 < /dev/null &)"
    ;;
  watch) on 0 "tail -n 50 -F ~/mmgen_jax/train.log" ;;
  save) signal 0 USR1 ;;
  stop) signal all TERM ;;
  *)
    echo "tpu_vm.sh: there is no \"$what\"; it is setup, start, watch, save or stop." >&2
    exit 2
    ;;
esac
