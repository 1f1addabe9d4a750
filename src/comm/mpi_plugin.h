/* mpi_plugin.h - the few functions of an MPI library that comm_mpi.c needs, as a table.
 *
 * Open MPI and MPICH have different ABIs, so that a program linked with one does not run under the other's mpirun.
 * plugin/mpi_plugin.c is compiled once by each mpicc into a shared object of its own, which comm_mpi.c loads by what
 * started the process. The plugin knows nothing of the library: bytes, ranks and messages only.
 */
#ifndef F8_COMM_MPI_PLUGIN_H
#define F8_COMM_MPI_PLUGIN_H

#include <stdint.h>

enum { F8_MPI_PLUGIN_VERSION = 1, F8_MPI_MESSAGE_BYTES = 512 };

typedef enum { F8_MPI_SEND, F8_MPI_RECEIVE } f8_mpi_direction;

/* Bytes to or from another rank. Between two ranks, the pieces of both sides have the same order and sizes. */
typedef struct {
    void *data; /* only read where it is sent */
    int64_t bytes;
    int32_t rank;
    f8_mpi_direction direction;
} f8_mpi_piece;

typedef enum { F8_MPI_DONE, F8_MPI_TIMEOUT, F8_MPI_TOLD, F8_MPI_ERROR } f8_mpi_outcome;

/* Why a transfer did not end well. rank: TIMEOUT: one that was waited for; TOLD: the one that failed. */
typedef struct {
    int32_t rank;
    char message[F8_MPI_MESSAGE_BYTES];
} f8_mpi_failure;

typedef struct {
    int32_t version;
    f8_mpi_outcome (*start)(int32_t *rank, int32_t *size, f8_mpi_failure *failure);
    /* Wait for all pieces, for another rank's `tell`, or for the time to pass. */
    f8_mpi_outcome (*transfer)(const f8_mpi_piece *piece, int32_t num_pieces, double seconds, f8_mpi_failure *failure);
    /* The transfers of all other ranks end with TOLD. */
    void (*tell)(const char *message);
    void (*finish)(void);
} f8_mpi_plugin;

#define F8_MPI_PLUGIN_SYMBOL "fp8flow_mpi_plugin"

#endif
