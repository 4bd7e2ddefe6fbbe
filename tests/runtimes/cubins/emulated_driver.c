/* An emulation of the CUDA driver functions that a launch needs, for tests on machines without a GPU.
 *
 * Device memory is host memory at addresses moved by MOVED, so that whoever touches it from the host crashes. A cubin is
 * read here on its own: its architecture has to be the device's, and a launch has to bring the threads, the shared memory
 * and as many parameters as the code asks for. Launches are recorded with the bytes of their parameters. Code that a test
 * named by `emulate_decode` is run: ragged decoding, program by program over the grid, as its Triton source does it.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOVED 0x5500000000000000ull
#define MOST 256

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

typedef struct { uint64_t address; size_t size; } Block;
typedef struct { uint64_t hash; int rotated, symbol_bytes, dense_bytes, components, channels, reach, by_position, first, block_p,
                 block_c; } Decode;
typedef struct { char name[128]; uint64_t hash; int sizes[64], count, threads, shared; } Function;
typedef struct { const unsigned char *image; } Module;
typedef struct { uint32_t grid[3], threads, shared; char name[128]; unsigned char bytes[1024]; int size; } Launch;

static int devices = 1, major = 8, minor = 7, optin = 163 * 1024, initialised, contexts, modules, sticky;
static size_t memory = 1 << 30, used;
static Block blocks[MOST];
static Decode decodes[MOST];
static int decode_count, launch_count, fail_status;
static char fail_name[64];
static Launch launches[MOST];
static _Thread_local void *current;
static int the_context;

void emulate_device(int count, int cc_major, int cc_minor, int shared, size_t bytes)
{ devices = count; major = cc_major; minor = cc_minor; optin = shared; memory = bytes; }
void emulate_failure(const char *name, int status) { snprintf(fail_name, sizeof fail_name, "%s", name); fail_status = status; }
int emulate_contexts(void) { return contexts; }
int emulate_modules(void) { return modules; }
int emulate_launches(void) { return launch_count; }
int emulate_blocks(void)
{ int n = 0; for (int i = 0; i < MOST; i++) n += blocks[i].address != 0; return n; }

int emulate_launch(int index, uint32_t *five, char *name, unsigned char *bytes)
{
    Launch *one = &launches[index];
    memcpy(five, one->grid, 3 * sizeof(uint32_t));
    five[3] = one->threads; five[4] = one->shared;
    strcpy(name, one->name);
    memcpy(bytes, one->bytes, one->size);
    return one->size;
}

/* ---- what the cubin says ---- */

static uint64_t at(const unsigned char *p, int size) { uint64_t v = 0; memcpy(&v, p, size); return v; }
static const unsigned char *section(const unsigned char *image, int index)
{ return image + at(image + 40, 8) + 64 * (uint64_t)index; }

uint64_t emulate_hash(const unsigned char *image)
{
    uint64_t hash = 1469598103934665603ull, end = at(image + 40, 8);
    for (uint64_t i = 0; i < end; i++) hash = (hash ^ image[i]) * 1099511628211ull;
    return hash;
}

void emulate_decode(uint64_t hash, const int *ten)
{
    Decode one = { hash, ten[0], ten[1], ten[2], ten[3], ten[4], ten[5], ten[6], ten[7], ten[8], ten[9] };
    decodes[decode_count++] = one;
}

static int find_function(const unsigned char *image, const char *wanted, Function *found)
{
    int count = (int)at(image + 60, 2);
    const unsigned char *names = image + at(section(image, (int)at(image + 62, 2)) + 24, 8);
    char full[160];
    snprintf(full, sizeof full, ".nv.info.%s", wanted);
    for (int i = 0; i < count; i++) {
        const unsigned char *head = section(image, i);
        if (strcmp((const char *)names + at(head, 4), full)) continue;
        const unsigned char *p = image + at(head + 24, 8), *end = p + at(head + 32, 8);
        while (p < end) {
            int format = p[0], code = p[1], size = (int)at(p + 2, 2);
            p += 4;
            if (format != 4) continue;
            if (code == 0x17) {
                found->sizes[at(p + 4, 2)] = (int)(at(p + 8, 4) >> 18);
                found->count++;
            }
            if (code == 0x10) found->threads = (int)(at(p, 4) * at(p + 4, 4) * at(p + 8, 4));
            p += size;
        }
        snprintf(found->name, sizeof found->name, "%s", wanted);
        found->hash = emulate_hash(image);
        return SUCCESS;
    }
    return NOT_FOUND;
}

/* ---- memory ---- */

static void *host(uint64_t address, size_t size)
{
    for (int i = 0; i < MOST; i++)
        if (blocks[i].address && address >= blocks[i].address && address + size <= blocks[i].address + blocks[i].size)
            return (void *)(uintptr_t)(address - MOVED);
    return NULL;
}

/* ---- ragged decoding, with and without a rotation, as compiled: (item, tile of positions, tile of channels) for each program ---- */

static float load(const float *base, int64_t index, size_t bytes)
{ return (size_t)(index + 1) * 4 <= bytes ? base[index] : NAN; }

static size_t size_of(uint64_t address)
{
    for (int i = 0; i < MOST; i++) if (blocks[i].address == address) return blocks[i].size;
    return 0;
}

static uint16_t bf16(float value)
{
    uint32_t bits; memcpy(&bits, &value, 4);
    return value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static int run_decode(const Decode *d, const unsigned char *bytes, const uint32_t *grid)
{
    const int pointers = d->rotated ? 10 : 9;
    uint64_t a[10];
    void *p[10];
    for (int i = 0; i < pointers; i++) {
        a[i] = at(bytes + 8 * i, 8);
        if (!(p[i] = host(a[i], 1))) return ILLEGAL_ADDRESS;
    }
    void *dense = p[pointers - 1];
    const size_t dense_size = size_of(a[pointers - 1]);
    const int positions = (int)at(bytes + 8 * pointers, 4), parts = (d->channels + d->block_c - 1) / d->block_c;
    const int32_t *starts = p[1], *kept = p[2], *rates = p[3];
    const float *steps = p[4], *offsets = p[6], *base = p[7], *inverse = d->rotated ? p[8] : NULL;
    const uint8_t *classes = p[5];
    for (uint32_t item = 0; item < grid[1]; item++) for (uint32_t block = 0; block < grid[0]; block++) {
        if ((item + 1) * 4 > size_of(a[2])) return ILLEGAL_ADDRESS;
        for (int pp = 0; pp < d->block_p; pp++) for (int cc = 0; cc < d->block_c; cc++) {
            const int place = (int)block / parts * d->block_p + pp, channel = (int)block % parts * d->block_c + cc;
            if (place >= positions || channel >= d->channels) continue;
            float total = 0;
            const int from = d->rotated ? 0 : channel, to = d->rotated ? kept[item] : channel + (channel < kept[item]);
            for (int k = from; k < to; k++) {
                const int64_t where = starts[item] + (int64_t)k * positions + place;
                if ((size_t)(where + 1) * d->symbol_bytes > size_of(a[0])) return ILLEGAL_ADDRESS;
                const int whole = d->symbol_bytes == 1 ? ((const int8_t *)p[0])[where] : ((const int16_t *)p[0])[where];
                const int bucket = (whole < -d->reach ? -d->reach : whole > d->reach ? d->reach : whole) + d->reach;
                const int64_t row = (int64_t)rates[item] * d->components + k;
                const int kind = classes[d->by_position ? row * positions + place : row];
                const float value = ((float)whole + load(offsets, kind * (2 * d->reach + 1) + bucket, size_of(a[6])))
                                    * load(steps, row, size_of(a[4]));
                total += d->rotated ? value * inverse[(int64_t)k * d->channels + channel] : value;
            }
            total += base[(int64_t)rates[item] * d->channels + channel];
            const int64_t out = (int64_t)item * positions * d->channels
                                + (d->first ? (int64_t)channel * positions + place : (int64_t)place * d->channels + channel);
            if ((size_t)(out + 1) * d->dense_bytes > dense_size) return ILLEGAL_ADDRESS;
            if (d->dense_bytes == 4) ((float *)dense)[out] = total; else ((uint16_t *)dense)[out] = bf16(total);
        }
    }
    return SUCCESS;
}

/* ---- the driver's functions ---- */

#define FAIL(name) if (fail_status && !strcmp(fail_name, name)) { int s = fail_status; fail_status = 0; return s; }
#define CONTEXT(name) FAIL(name) if (!current) return INVALID_CONTEXT;

int cuInit(unsigned flags) { FAIL("cuInit") if (!devices) return NO_DEVICE; initialised = 1; return flags ? INVALID_VALUE : 0; }
int cuDeviceGetCount(int *count) { if (!initialised) return NOT_INITIALIZED; *count = devices; return 0; }
int cuDeviceGet(int *device, int ordinal) { if (ordinal >= devices) return INVALID_VALUE; *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "emulated Orin %d", device - 40); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device)
{
    if (device < 40) return INVALID_VALUE;
    switch (which) {
    case 75: *value = major; return 0;
    case 76: *value = minor; return 0;
    case 97: *value = optin; return 0;
    case 18: *value = 1; return 0;
    }
    return INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int device)
{ FAIL("cuDevicePrimaryCtxRetain") if (device < 40) return INVALID_VALUE; contexts++; *context = &the_context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; contexts--; return 0; }
int cuCtxSetCurrent(void *context) { if (context != &the_context) return INVALID_CONTEXT; current = context; return 0; }
int cuCtxSynchronize(void) { CONTEXT("cuCtxSynchronize") int s = sticky; sticky = 0; return s; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { CONTEXT("") *free_bytes = memory - used; *total = memory; return 0; }

int cuMemAlloc_v2(uint64_t *address, size_t size)
{
    CONTEXT("cuMemAlloc_v2")
    if (!size) return INVALID_VALUE;
    if (used + size > memory) return OUT_OF_MEMORY;
    for (int i = 0; i < MOST; i++) if (!blocks[i].address) {
        void *p = aligned_alloc(256, (size + 255) / 256 * 256);
        memset(p, 0xCD, size);
        blocks[i].address = *address = (uint64_t)(uintptr_t)p + MOVED;
        blocks[i].size = size;
        used += size;
        return 0;
    }
    return OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address)
{
    CONTEXT("cuMemFree_v2")
    for (int i = 0; i < MOST; i++) if (blocks[i].address == address && address) {
        free((void *)(uintptr_t)(address - MOVED));
        used -= blocks[i].size;
        blocks[i].address = 0;
        return 0;
    }
    return INVALID_VALUE;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size)
{ CONTEXT("cuMemcpyHtoD_v2") void *p = host(to, size); if (!p) return ILLEGAL_ADDRESS; memcpy(p, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size)
{ CONTEXT("cuMemcpyDtoH_v2") void *p = host(from, size); if (!p) return ILLEGAL_ADDRESS; memcpy(to, p, size); return 0; }

int cuModuleLoadData(void **module, const unsigned char *image)
{
    CONTEXT("cuModuleLoadData")
    if (memcmp(image, "\x7f" "ELF", 4) || at(image + 18, 2) != 190) return INVALID_IMAGE;
    uint64_t flags = at(image + 48, 4);
    if ((int)((image[8] >= 8 ? flags >> 8 : flags) & 255) != 10 * major + minor) return NO_BINARY;
    uint64_t end = at(image + 40, 8) + 64 * at(image + 60, 2);
    unsigned char *kept = malloc(end);
    memcpy(kept, image, end);
    Module *made = malloc(sizeof *made);
    made->image = kept;
    *module = made;
    modules++;
    return 0;
}
int cuModuleUnload(Module *module) { CONTEXT("") modules--; free((void *)module->image); free(module); return 0; }
int cuModuleGetFunction(Function **function, Module *module, const char *name)
{
    CONTEXT("cuModuleGetFunction")
    Function *made = calloc(1, sizeof *made);
    int status = find_function(module->image, name, made);
    if (status) { free(made); return status; }
    made->shared = 48 * 1024;
    *function = made;
    return 0;
}
int cuFuncGetAttribute(int *value, int which, Function *function)
{ CONTEXT("") (void)function; if (which != 1) return INVALID_VALUE; *value = 0; return 0; }
int cuFuncSetAttribute(Function *function, int which, int value)
{ CONTEXT("") if (which != 8 || value > optin) return INVALID_VALUE; function->shared = value; return 0; }

int cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra)
{
    CONTEXT("cuLaunchKernel")
    if (stream || extra || !x || !y || !z || by != 1 || bz != 1 || launch_count == MOST) return INVALID_VALUE;
    if ((int)bx != function->threads || (int)shared > function->shared) return INVALID_VALUE;
    Launch *one = &launches[launch_count++];
    memset(one, 0, sizeof *one);
    one->grid[0] = x; one->grid[1] = y; one->grid[2] = z; one->threads = bx; one->shared = shared;
    strcpy(one->name, function->name);
    for (int i = 0; i < function->count; i++) {
        int align = function->sizes[i];
        one->size = (one->size + align - 1) / align * align;
        memcpy(one->bytes + one->size, parameters[i], function->sizes[i]);
        one->size += function->sizes[i];
    }
    for (int i = 0; i < decode_count; i++)
        if (decodes[i].hash == function->hash) sticky = run_decode(&decodes[i], one->bytes, one->grid);
    return 0;
}

int cuGetErrorName(int status, const char **name)
{
    switch (status) {
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return 0;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return 0;
    case NO_BINARY: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; return 0;
    case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; return 0;
    }
    *name = NULL;
    return INVALID_VALUE;
}
int cuGetErrorString(int status, const char **text)
{
    switch (status) {
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; return 0;
    case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; return 0;
    }
    *text = NULL;
    return INVALID_VALUE;
}
