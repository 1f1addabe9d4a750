# support_mpi.sh - support.sh, and what scripts that start mpirun need of each MPI library.
. "$(dirname "$0")/support.sh"
mpi_comm=${MPI_COMM:-$(dirname "$program")/tests/mpi_comm}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Where the plugins are, for programs that do not lie beside them.
LD_LIBRARY_PATH=$(dirname "$program")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
# The libraries of MPI keep what they have allocated.
ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0
export ASAN_OPTIONS

# Run a function with `library` and `launch` set, for each library that this build has a plugin for. MPI_LIBRARIES names
# those that are wanted.
each_library() # FUNCTION
{
    for library in ${MPI_LIBRARIES:-openmpi mpich}; do
        launch=mpirun.$library
        if [ ! -e "$(dirname "$program")/libfp8flow_mpi_$library.so" ] || ! command -v "$launch" >/dev/null; then
            skip "$library: not installed (make deps-test installs it)"
            continue
        fi
        # No cores of their own: there may be fewer than ranks.
        [ "$library" = mpich ] || launch="$launch --oversubscribe --bind-to none"
        "$1"
    done
}
