#!/usr/bin/env bash
# Trains on several nodes of a Slurm cluster, one process a GPU, and goes on by itself after preemption or the time limit.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 scripts/launch/slurm.sh \
#       --config configs/captioner_coco.py:path=/data/coco --workdir /shared/runs/coco
#
# All arguments after the script are those of scripts/train.py. The workdir lies on a disk that all nodes share.
# Send it from the repository's folder, with the virtual environment active; Slurm hands both on.
#
#SBATCH --job-name=mmgen_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Three minutes before the end each process gets SIGTERM: the run saves and ends with status 75.
#SBATCH --signal=TERM@180
#
# To stop it: scancel --full --signal=TERM JOB, which saves first; after a plain scancel Slurm waits half a minute (KillWait) only.
set -uo pipefail

# SIGTERM to this shell itself: somebody stops the job, or Slurm takes its nodes away and requeues it without our help.
stopped= child=
trap 'stopped=yes; [ -n "$child" ] && kill -s TERM "$child" 2>/dev/null' TERM
# A process that dies ends the others within about a minute (status 69): srun leaves that to them, so that they can say why.
srun --kill-on-bad-exit=0 --wait=180 --label python -u scripts/train.py --distributed "$@" &
child=$!
# It may have come before the child's number was known.
[ -n "$stopped" ] && kill -s TERM "$child" 2>/dev/null
# A signal interrupts `wait`, which then has to be asked again until srun is gone.
while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done

# srun ends with the highest status of all. 137: a process was killed, mostly for want of memory.
case $status in
  69 | 75 | 137)
    if [ -z "$stopped" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-50}" ]; then
      echo "slurm.sh: status $status, restart $((${SLURM_RESTART_COUNT:-0} + 1)) of ${RESTARTS:-50}" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$status"
