#!/bin/sh
# mpi_comm.sh - the MPI transport by itself (tests/mpi_comm.c), with each MPI library, 1 to 4 processes. MPI_COMM names
# the program.
set -u
. "$(dirname "$0")/support_mpi.sh"

transport() # RANKS CASE: exit code in `code`
{
    # shellcheck disable=SC2086
    timeout -k 5 120 $launch -n "$1" "$mpi_comm" "$2" </dev/null >"$logs/out" 2>"$logs/err"
    code=$?
}
fails() # RANKS CASE PATTERN: one line of ours, with the pattern, and the job has ended by itself
{
    transport "$1" "$2"
    check "$library: $2 of $1 ranks ends the job" [ "$code" -ne 0 -a "$code" -ne 124 ]
    check "$library: $2 of $1 ranks: one line" [ "$(grep -c 'mpi_comm: ' "$logs/err")" -eq 1 ]
    check "$library: $2 of $1 ranks: what it says" grep -qE "mpi_comm: $3" "$logs/err"
}
test_library()
{
    for ranks in 1 2 3 4; do
        transport "$ranks" good
        check "$library: $ranks ranks" grep -qx "good: done by $ranks ranks" "$logs/out"
        check "$library: $ranks ranks end well" [ "$code" -eq 0 ]
    done
    fails 2 last-fails 'rank 1: disk of rank 1 is full'
    fails 4 last-fails 'rank 3: disk of rank 3 is full'
    fails 3 all-fail 'rank 0: disk of rank 0 is full'
    fails 4 group-fails 'rank 3: disk of rank 3 is full'
    fails 3 mismatch 'rank [0-2]: rank [0-2]: exchange: .*(expects 16 bytes from rank 0, which sends 8|from rank 1)'
    fails 4 silent-rank 'rank 3: rank 3 has waited (1|0\.9[0-9]*) s in all_reduce for rank 1'
}
each_library test_library
finish
