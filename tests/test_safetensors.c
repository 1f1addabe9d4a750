/* test_safetensors.c - malformed files, round trips, checksums against every bit flip, sets of files. */
#include "files.h"

#include <fcntl.h>
#include <sys/resource.h>

#include "io/safetensors.h"
#include "io/utf8.h"

/* A file from a header's text and some data; the length prefix is right. */
static const char *put_header(const char *header, size_t size, size_t data_bytes)
{
    char *bytes = calloc(1, 8 + size + data_bytes);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (char)(size >> (8 * i));
    memcpy(bytes + 8, header, size);
    const char *path = put_file("case.safetensors", bytes, 8 + size + data_bytes);
    free(bytes);
    return path;
}

/* A file of a length prefix and `rest` zeros. */
static const char *put_length(uint64_t length, size_t rest)
{
    char *bytes = calloc(1, 8 + rest);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (char)(length >> (8 * i));
    const char *path = put_file("case.safetensors", bytes, 8 + rest);
    free(bytes);
    return path;
}

static void assert_rejected(const char *path, const char *message)
{
    f8_safetensors *file = NULL;
    fp8flow_status status = f8_safetensors_open(path, &file);
    if (status != FP8FLOW_EFORMAT || !strstr(fp8flow_last_error(), message))
        fail_msg("status %s, message \"%s\" lacks \"%s\"", fp8flow_status_name(status), fp8flow_last_error(), message);
    assert_null(file);
}

/* ---- Malformed files ---- */

static void test_bad_lengths_are_rejected(void **state)
{
    (void)state;
    assert_rejected(put_file("case.safetensors", "", 0), "too few");
    assert_rejected(put_file("case.safetensors", "\2\0\0\0\0\0\0", 7), "too few");
    assert_rejected(put_length(0, 0), "empty");
    assert_rejected(put_length(0, 8), "empty");
    assert_rejected(put_length(7, 6), "the file has only");
    assert_rejected(put_length(7, 7), "NUL byte");
    assert_rejected(put_length(1000, 10), "the file has only");
    assert_rejected(put_length(100000001, 10), "at most 100000000");
    assert_rejected(put_length(1ull << 63, 10), "9223372036854775808 bytes, at most");
    assert_rejected(put_length(UINT64_MAX, 10), "at most 100000000");
    assert_rejected(put_length(UINT64_MAX - 7, 10), "at most 100000000");
    f8_safetensors *file;
    assert_fails(f8_safetensors_open(test_folder, &file), FP8FLOW_EIO, "is a folder");
    assert_fails(f8_safetensors_open(in_folder("none"), &file), FP8FLOW_EIO, "none");
}

#define T(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

typedef struct {
    const char *header;
    size_t data_bytes;
    const char *message;
} fixture;

static const fixture malformed[] = {
    /* not JSON, or not this JSON */
    { " {}", 0, "'{' as the first byte" },
    { "[]", 0, "'{' as the first byte" },
    { "\xEF\xBB\xBF{}", 0, "'{' as the first byte" },
    { "{", 0, "header ends" },
    { "{}x", 0, "only spaces" },
    { "{}{}", 0, "only spaces" },
    { "{\"a\"", 0, "header ends where ':'" },
    { "{\"a\":{}}", 0, "dtype is missing" },
    { "{\"a\":null}", 0, "expected '{'" },
    { "{\"a\":[]}", 0, "expected '{'" },
    { "{a:1}", 0, "expected '\"'" },
    { "{" T("a", "U8", "[1]", "[0,1]") ",}", 1, "expected '\"'" },
    { "{" T("a", "U8", "[1]", "[0,1]") " " T("b", "U8", "[1]", "[1,2]") "}", 2, "',' or '}'" },
    { "{\"a\xFF\":{}}", 0, "UTF-8" },
    { "{\"\xC0\xAF\":{}}", 0, "UTF-8" },
    { "{\"\xED\xA0\x80\":{}}", 0, "UTF-8" },
    { "{\"\xF4\x90\x80\x80\":{}}", 0, "UTF-8" },
    { "{\"a\nb\":{}}", 0, "a character" },
    { "{\"a\\x\":{}}", 0, "escape" },
    { "{\"a\\u12g4\":{}}", 0, "four digits" },
    { "{\"a\\u0000\":{}}", 0, "four digits" },
    { "{\"a\\ud800\":{}}", 0, "surrogate" },
    { "{\"a\\ud800\\u0041\":{}}", 0, "surrogate" },
    { "{\"a\\udc00\":{}}", 0, "four digits" },
    { "{\"a\\", 0, "escape" },
    { "{\"a", 0, "header ends" },
    /* metadata */
    { "{\"__metadata__\":null}", 0, "expected '{'" },
    { "{\"__metadata__\":{\"a\":1}}", 0, "metadata are strings" },
    { "{\"__metadata__\":{\"a\":{}}}", 0, "metadata are strings" },
    { "{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, "duplicate metadata key \"a\"" },
    { "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate key \"__metadata__\"" },
    { "{\"__metadata__\":{},\"__met\\u0061data__\":{}}", 0, "duplicate key \"__metadata__\"" },
    { "{\"__metadata__\":{\"xxh3:a\":\"0123456789abcdef\"}}", 0, "not of the header" },
    /* keys of a tensor */
    { "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype is missing" },
    { "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "shape is missing" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "data_offsets is missing" },
    { "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
      "duplicate key \"dtype\"" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "unknown key \"x\"" },
    /* dtype */
    { "{" T("a", "F4", "[2]", "[0,1]") "}", 1, "tensor \"a\": " },
    { "{" T("a", "F4", "[2]", "[0,1]") "}", 1, "dtype \"F4\" is narrower than a byte" },
    { "{" T("a", "F6_E2M3", "[4]", "[0,3]") "}", 3, "narrower than a byte" },
    { "{" T("a", "F128", "[1]", "[0,16]") "}", 16, "dtype \"F128\" is unknown" },
    { "{" T("a", "f32", "[1]", "[0,4]") "}", 4, "unknown" },
    { "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "expected '\"'" },
    /* numbers */
    { "{" T("a", "U8", "[-1]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[01]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[1.0]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[1e0]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[+1]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[9223372036854775808]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[18446744073709551617]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[1,]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "1", "[0,1]") "}", 1, "expected '['" },
    { "{" T("a", "U8", "[[1]]", "[0,1]") "}", 1, "an integer" },
    { "{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "tensor \"a\"" },
    { "{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "more than 8 dimensions" },
    { "{" T("a", "U8", "[1]", "[0]") "}", 1, "','" },
    { "{" T("a", "U8", "[1]", "[0,1,2]") "}", 1, "']'" },
    { "{" T("a", "U8", "[1]", "[0,-1]") "}", 1, "an integer" },
    /* spans */
    { "{" T("a", "U8", "[1]", "[1,0]") "}", 1, "run backwards" },
    { "{" T("a", "F32", "[2,3]", "[0,20]") "}", 20, "call for 24 bytes, data_offsets give 20" },
    { "{" T("a", "U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "63 bits" },
    { "{" T("a", "F64", "[2305843009213693952]", "[0,0]") "}", 0, "63 bits" },
    { "{" T("a", "U8", "[4294967296,4294967296,0]", "[0,0]") "}", 0, "63 bits" },
    /* coverage */
    { "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[1,3]") "}", 3,
      "tensor \"b\": data start at 1, expected 2 (overlap)" },
    { "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[0,2]") "}", 2, "overlap" },
    { "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[3,5]") "}", 5,
      "tensor \"b\": data start at 3, expected 2 (hole)" },
    { "{" T("a", "U8", "[2]", "[1,3]") "}", 3, "hole" },
    { "{" T("a", "U8", "[2]", "[0,2]") "}", 1, "the file has only 1 bytes" },
    { "{" T("a", "U8", "[2]", "[0,2]") "}", 3, "tensors cover 2 bytes, the file has 3" },
    { "{" T("a", "U8", "[9223372036854775807]", "[0,9223372036854775807]") "}", 3, "the file has only 3" },
    { "{}", 1, "tensors cover 0 bytes" },
    { "{" T("a", "U8", "[0]", "[5,5]") "}", 0, "hole" },
    { "{" T("a", "U8", "[2]", "[0,2]") "," T("a", "U8", "[2]", "[2,4]") "}", 4, "duplicate tensor \"a\"" },
    { "{" T("a", "U8", "[2]", "[0,2]") "," T("\\u0061", "U8", "[2]", "[2,4]") "}", 4, "duplicate tensor \"a\"" },
};

static void test_malformed_headers_are_rejected(void **state)
{
    (void)state;
    assert_true(sizeof malformed / sizeof malformed[0] >= 40);
    for (size_t i = 0; i < sizeof malformed / sizeof malformed[0]; i++) {
        const fixture *f = &malformed[i];
        assert_rejected(put_header(f->header, strlen(f->header), f->data_bytes), f->message);
    }
}

static void test_nul_and_depth_are_rejected(void **state)
{
    (void)state;
    static const char header[] = "{" T("a", "U8", "[1]", "[0,1]") "} ";
    char copy[sizeof header];
    for (size_t i = 0; i < sizeof header - 1; i++) {
        memcpy(copy, header, sizeof header);
        copy[i] = 0;
        assert_rejected(put_header(copy, sizeof header - 1, 1), "NUL byte");
    }
    enum { DEPTH = 3000 };
    char deep[DEPTH + 5] = "{\"a\":";
    memset(deep + 5, '{', DEPTH);
    assert_rejected(put_header(deep, sizeof deep, 0), "expected '\"'");
    memset(deep + 5, '[', DEPTH);
    assert_rejected(put_header(deep, sizeof deep, 0), "expected '{'");
}

/* Every prefix of a good header, and every good header cut anywhere in its file. */
static void test_truncation_is_rejected(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"k\":\"v\\u00e9\\ud83d\\ude00\"}," T("a", "F32", "[2]", "[0,8]") "}";
    size_t size = sizeof header - 1;
    for (size_t cut = 0; cut < size; cut++) assert_rejected(put_header(header, cut, 8), "");
    const char *path = put_header(header, size, 8);
    size_t count;
    char *bytes = get_file(path, &count);
    for (size_t cut = 0; cut < count; cut++) assert_rejected(put_file("cut.safetensors", bytes, cut), "");
    free(bytes);
}

/* ---- Accepted files ---- */

static void test_odd_but_valid_headers_are_accepted(void **state)
{
    (void)state;
    static const char header[] =
        "{ \"b\\n\\\"\\u0041\\ud83d\\ude00\" :\t{ \"data_offsets\" : [ 4 , 4 ] , \"shape\" : [ 0 , 7 ] ,\r\n \"dtype\" "
        ": \"F8_\\u00454M3\" } ,"
        "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"\":{\"dtype\":\"BOOL\",\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[4,5]},"
        "\"__metadata__\" : { \"z\" : \"last\" , \"a\\\"q\" :\n\"x\\\"\\ty\" , \"\" : \"\" } } \n";
    f8_safetensors *file;
    f8_stored_tensor t;
    assert_ok(f8_safetensors_open(put_header(header, sizeof header - 1, 5), &file));
    assert_int_equal(f8_safetensors_count(file), 3);
    assert_string_equal(f8_safetensors_at(file, 0).name, "");
    assert_true(f8_safetensors_find(file, "b\n\"A\xF0\x9F\x98\x80", &t));
    assert_true(t.dtype == F8_STORED_F8_E4M3 && t.rank == 2 && t.shape[0] == 0 && t.shape[1] == 7 && t.bytes == 0);
    assert_true(f8_safetensors_find(file, "scalar", &t));
    assert_true(t.rank == 0 && t.bytes == 4 && t.dtype == F8_STORED_F32 && !t.has_checksum);
    assert_true(f8_safetensors_find(file, "", &t));
    assert_true(t.rank == 8 && t.shape[7] == 1 && t.bytes == 1);
    assert_false(f8_safetensors_find(file, "none", &t));
    assert_string_equal(f8_safetensors_metadata(file, "z"), "last");
    assert_string_equal(f8_safetensors_metadata(file, "a\"q"), "x\"\ty");
    assert_string_equal(f8_safetensors_metadata(file, ""), "");
    assert_null(f8_safetensors_metadata(file, "y"));
    f8_safetensors_close(file);
    assert_ok(f8_safetensors_open(put_header("{}", 2, 0), &file));
    assert_int_equal(f8_safetensors_count(file), 0);
    assert_null(f8_safetensors_metadata(file, ""));
    f8_safetensors_close(file);
}

static void test_every_dtype_has_its_width(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int bytes;
    } expected[] = { { "F64", 8 }, { "F32", 4 }, { "F16", 2 }, { "BF16", 2 },   { "I64", 8 },     { "I32", 4 },
                     { "I16", 2 }, { "I8", 1 },  { "U8", 1 },  { "BOOL", 1 },   { "F8_E4M3", 1 }, { "F8_E5M2", 1 },
                     { "U16", 2 }, { "U32", 4 }, { "U64", 8 }, { "F8_E8M0", 1 } };
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        char header[128];
        f8_safetensors *file;
        int bytes = 3 * expected[i].bytes;
        int length = snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%d]}}",
                              expected[i].name, bytes);
        assert_ok(f8_safetensors_open(put_header(header, (size_t)length, (size_t)bytes), &file));
        assert_string_equal(f8_stored_dtype_name(f8_safetensors_at(file, 0).dtype), expected[i].name);
        f8_safetensors_close(file);
    }
}

/* Written by the Python package: tests/fixtures/make_python.py. */
static void test_python_file_is_read(void **state)
{
    (void)state;
    f8_safetensors *file;
    f8_stored_tensor t;
    float values[6];
    uint8_t codes[5];
    int64_t scalar;
    assert_ok(f8_safetensors_open("tests/fixtures/python.safetensors", &file));
    assert_int_equal(f8_safetensors_count(file), 5);
    assert_string_equal(f8_safetensors_metadata(file, "format"), "np");
    assert_string_equal(f8_safetensors_metadata(file, "note"), "caf\xC3\xA9 \"quoted\"\n");
    assert_true(f8_safetensors_find(file, "matrix", &t));
    assert_true(t.dtype == F8_STORED_F32 && t.rank == 2 && t.shape[0] == 2 && t.shape[1] == 3);
    assert_ok(f8_safetensors_read(file, &t, values, sizeof values, NULL));
    for (int i = 0; i < 6; i++) assert_true(values[i] == (float)i - 2.5f);
    assert_true(f8_safetensors_find(file, "codes", &t));
    assert_ok(f8_safetensors_read(file, &t, codes, sizeof codes, NULL));
    for (int i = 0; i < 5; i++) assert_int_equal(codes[i], 250 + i);
    assert_true(f8_safetensors_find(file, "scalar", &t));
    assert_int_equal(t.rank, 0);
    assert_ok(f8_safetensors_read(file, &t, &scalar, sizeof scalar, NULL));
    assert_int_equal(scalar, -9000000000);
    assert_true(f8_safetensors_find(file, "empty", &t));
    assert_true(t.bytes == 0 && t.shape[0] == 0 && t.shape[1] == 4);
    assert_true(f8_safetensors_find(file, "half", &t) && t.dtype == F8_STORED_F16);
    f8_safetensors_close(file);
}

/* ---- Round trip ---- */

static const float weights[6] = { 1, 2, 3, 4, 5, 6 };
static const uint8_t codes[7] = { 0x7E, 0xFE, 0, 1, 2, 3, 0x20 };
static const int64_t step = 12345678901;

static const f8_tensor_to_store stored[] = {
    { "model.layers.0.mlp.experts.3.weight", F8_STORED_F8_E4M3, 1, { 7 }, codes },
    { "w\"\xC3\xA9\n", F8_STORED_F32, 2, { 2, 3 }, weights },
    { "nothing", F8_STORED_BF16, 3, { 4, 0, 5 }, NULL },
    { "step", F8_STORED_I64, 0, { 0 }, &step },
};
static const f8_metadata_pair pairs[] = { { "format", "pt" }, { "b\\", "\"" } };

static const char *put_stored(const char *name)
{
    const char *path = in_folder(name);
    assert_ok(f8_safetensors_write(path, stored, 4, pairs, 2, NULL));
    return path;
}

static void test_round_trip_keeps_everything(void **state)
{
    (void)state;
    f8_safetensors *file;
    assert_ok(f8_safetensors_open(put_stored("a.safetensors"), &file));
    assert_int_equal(f8_safetensors_count(file), 4);
    for (int i = 0; i < 4; i++) {
        f8_stored_tensor t;
        char bytes[64];
        assert_true(f8_safetensors_find(file, stored[i].name, &t));
        assert_true(t.dtype == stored[i].dtype && t.rank == stored[i].rank && t.has_checksum);
        assert_int_equal(t.offset % f8_stored_dtype_bytes(t.dtype), 0);
        assert_memory_equal(t.shape, stored[i].shape, sizeof t.shape);
        assert_ok(f8_safetensors_read(file, &t, bytes, t.bytes, NULL));
        if (t.bytes) assert_memory_equal(bytes, stored[i].data, (size_t)t.bytes);
        assert_fails(f8_safetensors_read(file, &t, bytes, t.bytes + 1, NULL), FP8FLOW_ESHAPE, "the caller expects");
    }
    assert_string_equal(f8_safetensors_metadata(file, "format"), "pt");
    assert_string_equal(f8_safetensors_metadata(file, "b\\"), "\"");
    int64_t unchecked = -1;
    assert_ok(f8_safetensors_verify(file, &unchecked));
    assert_int_equal(unchecked, 0);
    f8_safetensors_close(file);
    f8_safetensors_close(NULL);
}

static void test_same_input_gives_same_bytes(void **state)
{
    (void)state;
    size_t a_count, b_count;
    char *a = get_file(put_stored("a.safetensors"), &a_count), *b = get_file(put_stored("b.safetensors"), &b_count);
    assert_int_equal(a_count, b_count);
    assert_memory_equal(a, b, a_count);
    uint64_t length;
    memcpy(&length, a, 8);
    assert_int_equal(length % 8, 0);
    free(a);
    free(b);
}

/* A tensor of 3 pieces and a bit, so that pieces are read and hashed in the right order. */
static void test_large_tensor_round_trip(void **state)
{
    (void)state;
    enum { COUNT = (3 << 20) + 17 };
    uint8_t *data = malloc(COUNT), *back = malloc(COUNT);
    assert_true(data && back);
    for (uint64_t i = 0; i < COUNT; i++) data[i] = (uint8_t)f8_mix(i);
    f8_tensor_to_store tensor = { "big", F8_STORED_U8, 1, { COUNT }, data };
    f8_safetensors *file;
    assert_ok(f8_safetensors_write(in_folder("big"), &tensor, 1, NULL, 0, NULL));
    assert_ok(f8_safetensors_open(in_folder("big"), &file));
    f8_stored_tensor t = f8_safetensors_at(file, 0);
    assert_ok(f8_safetensors_read(file, &t, back, COUNT, NULL));
    assert_memory_equal(data, back, COUNT);
    assert_int_equal(truncate(in_folder("big"), COUNT / 2), 0);
    assert_fails(f8_safetensors_read(file, &t, back, COUNT, NULL), FP8FLOW_EIO, "tensor \"big\"");
    int64_t unchecked;
    assert_fails(f8_safetensors_verify(file, &unchecked), FP8FLOW_EIO, "wanted");
    f8_safetensors_close(file);
    free(data);
    free(back);
}

static void test_writer_refuses_bad_requests(void **state)
{
    (void)state;
    const char *path = put_text("kept", "old");
    f8_tensor_to_store bad = stored[0];
#define REFUSE(change, status, text)                                                              \
    do {                                                                                          \
        bad = stored[0];                                                                          \
        change;                                                                                   \
        assert_fails(f8_safetensors_write(path, &bad, 1, NULL, 0, NULL), FP8FLOW_##status, text); \
    } while (0)
    REFUSE(bad.name = NULL, EINVAL, "NULL or not UTF-8");
    REFUSE(bad.name = "\xFF", EINVAL, "not UTF-8");
    REFUSE(bad.name = "__metadata__", EINVAL, "__metadata__");
    REFUSE(bad.dtype = F8_NUM_STORED_DTYPES, EINVAL, "dtype 16");
    REFUSE(bad.rank = 9, ESHAPE, "9 dimensions");
    REFUSE(bad.rank = -1, ESHAPE, "-1 dimensions");
    REFUSE(bad.shape[0] = -1, ESHAPE, "negative");
    REFUSE((bad.rank = 2, bad.shape[0] = bad.shape[1] = INT64_MAX), ESHAPE, "2^63");
    REFUSE(bad.data = NULL, EINVAL, "data is NULL");
#undef REFUSE
    f8_tensor_to_store twice[2] = { stored[0], stored[0] };
    assert_fails(f8_safetensors_write(path, twice, 2, NULL, 0, NULL), FP8FLOW_EINVAL, "given twice");
    f8_metadata_pair reserved = { "xxh3:a", "" }, null_value = { "a", NULL }, same[2] = { { "a", "" }, { "a", "b" } };
    assert_fails(f8_safetensors_write(path, NULL, 0, &reserved, 1, NULL), FP8FLOW_EINVAL, "reserved");
    assert_fails(f8_safetensors_write(path, NULL, 0, &null_value, 1, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(f8_safetensors_write(path, NULL, 0, same, 2, NULL), FP8FLOW_EINVAL, "given twice");
    assert_fails(f8_safetensors_write(in_folder("kept/x"), stored, 4, NULL, 0, NULL), FP8FLOW_EIO, "Not a directory");
    size_t count;
    char *bytes = get_file(path, &count);
    assert_string_equal(bytes, "old");
    free(bytes);
    assert_int_equal(count_entries(test_folder), 1);
}

/* ---- Damage ---- */

/* Open, and read every tensor. */
static fp8flow_status read_everything(const char *path)
{
    f8_safetensors *file;
    int64_t unchecked;
    F8_TRY(f8_safetensors_open(path, &file));
    fp8flow_status status = f8_safetensors_verify(file, &unchecked);
    f8_safetensors_close(file);
    return status;
}

static void test_every_bit_flip_is_found(void **state)
{
    (void)state;
    size_t count;
    char *bytes = get_file(put_stored("a.safetensors"), &count);
    assert_ok(read_everything(in_folder("a.safetensors")));
    for (size_t bit = 0; bit < count * 8; bit++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        fp8flow_status status = read_everything(put_file("flipped", bytes, count));
        if (status != FP8FLOW_EFORMAT) fail_msg("bit %zu: %s", bit, fp8flow_status_name(status));
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    /* In the data, the message names the tensor: codes are narrowest, hence last. */
    bytes[count - 3] ^= 4;
    assert_fails(read_everything(put_file("flipped", bytes, count)), FP8FLOW_EFORMAT,
                 "tensor \"model.layers.0.mlp.experts.3.weight\" is damaged");
    free(bytes);
}

/* Random edits of a file without checksums: any answer, but no crash, leak or overrun (for the sanitizers). */
static void test_random_edits_do_no_harm(void **state)
{
    (void)state;
    static const char pieces[] = "{}[]\",:\\u0019eE-. \xC3\xA9\n";
    size_t count;
    char *good = get_file("tests/fixtures/python.safetensors", &count);
    char *bytes = malloc(count);
    int accepted = 0;
    for (uint64_t trial = 0; trial < 3000; trial++) {
        memcpy(bytes, good, count);
        for (uint64_t edit = 0; edit <= trial % 3; edit++) {
            uint64_t r = f8_random(5, trial, edit);
            bytes[8 + r % (count - 8)] = pieces[(r >> 32) % (sizeof pieces - 1)];
        }
        f8_safetensors *file;
        int64_t unchecked;
        if (f8_safetensors_open(put_file("edited", bytes, count), &file) != FP8FLOW_OK) continue;
        assert_ok(f8_safetensors_verify(file, &unchecked));
        f8_safetensors_close(file);
        accepted++;
    }
    assert_true(accepted > 0);
    free(good);
    free(bytes);
}

/* ---- Memory ---- */

typedef void append_item(f8_buffer *text, int i);

static void append_overlapping(f8_buffer *text, int i)
{
    f8_buffer_format(text, "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}", i ? "," : "{", i);
}

static void append_empty(f8_buffer *text, int i)
{
    f8_buffer_format(text, "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "{", i);
}

static void append_pair(f8_buffer *text, int i)
{
    f8_buffer_format(text, "%s\"%x\":\"\"", i ? "," : "{\"__metadata__\":{", i);
}

static size_t peak_memory(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (size_t)usage.ru_maxrss * 1024;
}

/* Opens a hostile file in a child that starts small; the child's peak memory must stay below 3 headers. */
static void check_memory(append_item *append, int count, const char *closing)
{
    f8_buffer text = { 0 };
    for (int i = 0; i < count; i++) append(&text, i);
    f8_buffer_text(&text, closing);
    assert_ok(f8_buffer_check(&text, "test"));
    size_t size = text.size;
    put_header(text.data, size, 0);
    f8_buffer_free(&text);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        f8_safetensors *file;
        int reset = open("/proc/self/clear_refs", O_WRONLY);
        bool measurable = reset >= 0 && write(reset, "5", 1) == 1;
        size_t before = peak_memory();
        fp8flow_status status = f8_safetensors_open(in_folder("case.safetensors"), &file);
        f8_safetensors_close(file);
        size_t used = peak_memory() - before;
        if (used >= 3 * size)
            print_error("%zu bytes for a header of %zu: %s\n", used, size, fp8flow_status_name(status));
        _exit(measurable && used >= 3 * size);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_memory_stays_below_three_headers(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(FP8FLOW_TSAN)
    skip(); /* shadow memory counts as memory */
#endif
    check_memory(append_overlapping, 200000, "}");
    check_memory(append_empty, 200000, "}");
    check_memory(append_pair, 1000000, "}}");
}

/* ---- Sets ---- */

static void test_set_finds_tensors_of_all_shards(void **state)
{
    (void)state;
    f8_safetensors_set *set;
    f8_stored_tensor t;
    assert_ok(f8_safetensors_write(in_folder("0"), stored, 2, NULL, 0, NULL));
    assert_ok(f8_safetensors_write(in_folder("1"), stored + 2, 2, NULL, 0, NULL));
    assert_ok(f8_safetensors_write(in_folder("2"), NULL, 0, NULL, 0, NULL));
    const char *paths[] = { in_folder("0"), in_folder("1"), in_folder("2") };
    assert_ok(f8_safetensors_set_open(paths, 3, &set));
    assert_int_equal(f8_safetensors_set_count(set), 4);
    for (int i = 0; i < 4; i++) {
        const f8_safetensors *file = f8_safetensors_set_find(set, stored[i].name, &t);
        char bytes[64];
        assert_non_null(file);
        assert_string_equal(f8_safetensors_path(file), paths[i / 2]);
        assert_ok(f8_safetensors_read(file, &t, bytes, t.bytes, NULL));
        if (t.bytes) assert_memory_equal(bytes, stored[i].data, (size_t)t.bytes);
        f8_safetensors_set_at(set, i, &t);
        if (i == 0) assert_string_equal(t.name, "model.layers.0.mlp.experts.3.weight");
    }
    assert_null(f8_safetensors_set_find(set, "none", &t));
    f8_safetensors_set_close(set);
    f8_safetensors_set_close(NULL);
}

static void test_set_rejects_a_name_in_two_shards(void **state)
{
    (void)state;
    f8_safetensors_set *set;
    assert_ok(f8_safetensors_write(in_folder("first"), stored, 3, NULL, 0, NULL));
    assert_ok(f8_safetensors_write(in_folder("second"), stored + 2, 2, NULL, 0, NULL));
    const char *paths[] = { in_folder("first"), in_folder("second"), in_folder("none") };
    assert_fails(f8_safetensors_set_open(paths, 2, &set), FP8FLOW_EFORMAT, "tensor \"nothing\" is in ");
    assert_non_null(strstr(fp8flow_last_error(), "first"));
    assert_non_null(strstr(fp8flow_last_error(), "second"));
    assert_null(set);
    assert_fails(f8_safetensors_set_open(paths + 1, 2, &set), FP8FLOW_EIO, "none");
    assert_ok(f8_safetensors_set_open(paths, 0, &set));
    assert_int_equal(f8_safetensors_set_count(set), 0);
    f8_safetensors_set_close(set);
}

/* ---- UTF-8 ---- */

static void test_utf8_accepts_exactly_the_characters(void **state)
{
    (void)state;
    /* An independent encoder, over all code points. */
    for (uint32_t code = 1; code < 0x120000; code++) {
        char text[4];
        size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
        for (size_t i = 0; i < length; i++) text[i] = (char)(0x80 | (code >> 6 * (length - 1 - i) & 0x3F));
        if (length == 1) text[0] = (char)code;
        else text[0] = (char)((0xF00u >> length & 0xFF) | code >> 6 * (length - 1));
        bool valid = code < 0x110000 && (code < 0xD800 || code > 0xDFFF);
        if (f8_utf8_length(text, length) != (valid ? length : 0)) fail_msg("U+%04X", code);
        if (length > 1) assert_int_equal(f8_utf8_length(text, length - 1), 0);
    }
    assert_int_equal(f8_utf8_length("\x80", 1), 0);
    assert_int_equal(f8_utf8_length("\xC1\xBF", 2), 0);
    assert_int_equal(f8_utf8_length("\xE0\x9F\xBF", 3), 0);
    assert_int_equal(f8_utf8_length("\xF0\x8F\xBF\xBF", 4), 0);
    assert_int_equal(f8_utf8_length("\xF8\x88\x80\x80\x80", 5), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_bad_lengths_are_rejected),
        folder_test(test_malformed_headers_are_rejected),
        folder_test(test_nul_and_depth_are_rejected),
        folder_test(test_truncation_is_rejected),
        folder_test(test_odd_but_valid_headers_are_accepted),
        folder_test(test_every_dtype_has_its_width),
        cmocka_unit_test(test_python_file_is_read),
        folder_test(test_round_trip_keeps_everything),
        folder_test(test_same_input_gives_same_bytes),
        folder_test(test_large_tensor_round_trip),
        folder_test(test_writer_refuses_bad_requests),
        folder_test(test_every_bit_flip_is_found),
        folder_test(test_random_edits_do_no_harm),
        folder_test(test_memory_stays_below_three_headers),
        folder_test(test_set_finds_tensors_of_all_shards),
        folder_test(test_set_rejects_a_name_in_two_shards),
        cmocka_unit_test(test_utf8_accepts_exactly_the_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
