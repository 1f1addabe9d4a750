/* comm_mpi.h - which MPI libraries this program can use. The transport itself is entered by fp8flow_run_mpi_ranks. */
#ifndef F8_COMM_COMM_MPI_H
#define F8_COMM_COMM_MPI_H

#include <stddef.h>

/* How many of the plugins can be loaded; text: the versions of their libraries. */
int f8_comm_describe_mpi(char *text, size_t bytes);

#endif
