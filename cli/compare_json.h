/* compare_json.h - what the writer and the reader of compare.json share. */
#ifndef CLI_COMPARE_JSON_H
#define CLI_COMPARE_JSON_H

#include <jansson.h>

#include "compare.h"

/* What two runs must have in common to be compared, recipe and seed left out. */
json_t *compare_training_object(const compare_study *study);

#endif
