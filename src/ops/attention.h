/* attention.h - what the contract, the reference and the BLAS path of attention share. */
#ifndef F8_OPS_ATTENTION_H
#define F8_OPS_ATTENTION_H

#include "ops/ops.h"

/* Tiles of this many columns fit into the scratch memory of a thread; part of the contract. */
enum { F8_ATTENTION_MAX_HEAD_DIM = 1024 };

#endif
