/* cmd_doctor.c - `fp8flow doctor`: what this build found on this machine, and what each missing thing costs. */
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <jansson.h>

#include "cli.h"
#include "train_loop.h"

typedef struct {
    int32_t json;
} doctor_settings;

static const cli_option doctor_options[] = {
    CLI_OPTION_FLAG(doctor_settings, json, "json", "print one JSON object"),
};

static double memory_bytes(int name)
{
    long pages = sysconf(name), page_bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && page_bytes > 0 ? (double)pages * (double)page_bytes : 0;
}

static void print_table(const struct utsname *machine)
{
    char all[CLI_NUMBER_BYTES], available[CLI_NUMBER_BYTES];
    fp8flow_feature feature;
    printf("%-10s %s, build %s\n", "fp8flow", fp8flow_version(), fp8flow_build());
    printf("%-10s %s %s, %s\n", "system", machine->sysname, machine->release, machine->machine);
    printf("%-10s %d usable\n", "processors", cli_num_processors());
    printf("%-10s %s, %s free\n\n", "memory", cli_format_bytes(all, memory_bytes(_SC_PHYS_PAGES)),
           cli_format_bytes(available, memory_bytes(_SC_AVPHYS_PAGES)));
    for (int64_t i = 0; fp8flow_feature_get(i, &feature) == FP8FLOW_OK; i++) {
        printf("%-10s %-4s %s\n", feature.name, feature.available ? "yes" : "no", feature.detail);
        if (!feature.available && *feature.cost) printf("%-15s %s\n", "", feature.cost);
    }
}

static int print_json(const struct utsname *machine)
{
    fp8flow_feature feature;
    json_t *features = json_array();
    for (int64_t i = 0; fp8flow_feature_get(i, &feature) == FP8FLOW_OK; i++)
        json_array_append_new(features,
                              json_pack("{s:s, s:b, s:s, s:s}", "name", feature.name, "available",
                                        (int)feature.available, "detail", feature.detail, "cost", feature.cost));
    json_t *report =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:I, s:I, s:o}", "version", fp8flow_version(), "build",
                  fp8flow_build(), "system", machine->sysname, "release", machine->release, "machine", machine->machine,
                  "processors", (int)cli_num_processors(), "memory_bytes", (json_int_t)memory_bytes(_SC_PHYS_PAGES),
                  "free_bytes", (json_int_t)memory_bytes(_SC_AVPHYS_PAGES), "features", features);
    if (!report) return cli_fail(&cli_doctor, "out of memory");
    json_dumpf(report, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(report);
    return CLI_DONE;
}

static int run_doctor(int argc, char **argv)
{
    doctor_settings settings = { 0 };
    int code = cli_parse(&cli_doctor, argc, argv, &settings);
    if (code != CLI_GO_ON) return code;
    struct utsname machine;
    if (uname(&machine) != 0) return cli_fail(&cli_doctor, "the system does not say what it is");
    if (settings.json) return print_json(&machine);
    print_table(&machine);
    return CLI_DONE;
}

const cli_command cli_doctor = {
    .name = "doctor",
    .summary = "Show what this build found on this machine",
    .options = doctor_options,
    .num_options = sizeof doctor_options / sizeof *doctor_options,
    .runs_under_mpirun = 1,
    .example = "fp8flow doctor",
    .run = run_doctor,
};
