/* mpi_plugin.h - the few functions of an MPI library that comm_mpi.c needs, as a table.
 *
 * Open MPI and MPICH have different ABIs, so that a program linked with one does not run under the other's mpirun.
 * plugin/mpi_plugin.c is compiled once by each mpicc into a shared object of its own, which comm_mpi.c loads by what
 * started the process. The plugin knows nothing of the library: bytes, ranks and messages only.
 */
#ifndef F8_COMM_MPI_PLUGIN_H
#define F8_COMM_MPI_PLUGIN_H

#include <stdint.h>

/* The highest tag that every MPI has. */
enum { F8_MPI_PLUGIN_VERSION = 2, F8_MPI_MESSAGE_BYTES = 512, F8_MPI_LAST_TAG = 32767 };

typedef enum { F8_MPI_SEND, F8_MPI_RECEIVE } f8_mpi_direction;

/* Bytes to or from another rank. Between two ranks, the pieces of both sides have the same order and sizes. */
typedef struct {
    void *data; /* only read where it is sent */
    int64_t bytes;
    int32_t rank;
    f8_mpi_direction direction;
} f8_mpi_piece;

typedef enum { F8_MPI_DONE, F8_MPI_TIMEOUT, F8_MPI_TOLD, F8_MPI_ERROR } f8_mpi_outcome;

/* Why a rank gives up. */
typedef struct {
    int32_t rank;      /* it */
    int32_t waits_for; /* the first rank that it has waited for, in vain; -1: the failure is its own */
    double seconds;    /* so long */
    char message[F8_MPI_MESSAGE_BYTES];
} f8_mpi_failure;

typedef struct {
    int32_t version;
    /* "Open MPI 4.1.4"; works before start. */
    void (*describe)(char *text, int32_t bytes);
    f8_mpi_outcome (*start)(int32_t *rank, int32_t *size, f8_mpi_failure *failure);
    /* Move all pieces. what: the collective's name, for messages. tag: 1 .. F8_MPI_LAST_TAG, the same on both sides;
     * those of different tags do not mix. Ends early when another rank tells a failure (*told), or when `seconds` pass
     * in which no piece is completed. *failure is this rank's own. After an error there are no other transfers. */
    f8_mpi_outcome (*transfer)(const char *what, int32_t tag, const f8_mpi_piece *piece, int32_t num_pieces,
                               double seconds, f8_mpi_failure *failure, f8_mpi_failure *told);
    /* The transfers of all other ranks end with TOLD. */
    void (*tell)(const f8_mpi_failure *failure);
    /* TOLD once another rank has told something, TIMEOUT after `seconds`. */
    f8_mpi_outcome (*listen)(double seconds, f8_mpi_failure *told);
    void (*finish)(void);
} f8_mpi_plugin;

#define F8_MPI_PLUGIN_SYMBOL "fp8flow_mpi_plugin"

#endif
